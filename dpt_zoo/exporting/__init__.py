"""A detector as one graph of tensor operators in one file: ONNX, OpenVINO or `torch.export`."""

from .. import runtimes  # noqa: F401  (before openvino)
