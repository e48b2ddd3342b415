"""The type of the `run` fixture."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Runs the command in this process: exit status, standard output, standard error."""
