"""The published results measured again, each detector in its own process, and their table."""
