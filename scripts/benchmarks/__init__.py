"""The subjects of `scripts/benchmark.py`: each is a module with a function `compare` that yields measurements."""
