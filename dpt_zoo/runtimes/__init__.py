"""The runtimes of exported files, which check a file before they get it. They report nothing to their vendors."""

import os
import sys

# Since version 1.29, ONNX Runtime sends names and hashes of models by default.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO sends each import and each conversion by default, if it finds this package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
