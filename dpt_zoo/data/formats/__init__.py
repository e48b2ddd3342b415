"""Readers of the labels that tools write, and writers: one module for each format."""
