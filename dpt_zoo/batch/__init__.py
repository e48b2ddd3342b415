"""Detect objects in many images and videos: one run, written to a folder."""
