"""Weights: where they are kept, how they are read, and how they get into a model."""
