"""Data in COCO format: its checks, its conversion from other formats, and the digit scenes."""
