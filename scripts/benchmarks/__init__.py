"""What `scripts/benchmark.py` measures: a module for each subject, whose `compare` yields what it measured."""
