"""The published results measured again, each detector in a process of its own, and their table."""
