"""A detector as one graph of tensor operators in one file: ONNX, OpenVINO or `torch.export`."""
