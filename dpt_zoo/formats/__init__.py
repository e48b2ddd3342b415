"""Readers of the labels that tools write: one module for each format."""
