"""The published results measured again, and the table of them."""
