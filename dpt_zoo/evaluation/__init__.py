"""Evaluation: the predictions of a detector, COCO's metrics, and reports."""
