"""What a hostile pickle is made of."""

from typing import Any


class Call:
    """Pickles as a call, made by whoever unpickles it; then its state is set."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        """Be callable, so that pickle takes a call's result for a function to call."""
