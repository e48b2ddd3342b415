"""Videos: their frames, read and written, and objects followed through them."""
