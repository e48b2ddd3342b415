"""Where this machine keeps the zoo's weights. Imports no torch."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of cached weights: `$DPT_ZOO_CACHE`, else `dpt_zoo` in the user's cache folder."""
    chosen = os.environ.get("DPT_ZOO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpt_zoo"


def cached_file(name: str) -> Path:
    """The file that holds the weights of the model `name`, once they are here."""
    return cache_dir() / f"{name}.safetensors"
