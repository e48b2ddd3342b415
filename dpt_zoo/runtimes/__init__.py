"""The runtimes of exported files, which check a file before they get it."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""Since version 1.29, ONNX Runtime sends names and hashes of models to its vendor by default."""
