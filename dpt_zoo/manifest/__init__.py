"""Which models exist and where their weights are. Imports no torch."""
