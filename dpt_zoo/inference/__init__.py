"""Detectors that are called with images, and their results."""
