"""A web page for trying models on images. It needs PyTorch and Gradio: `pip install "dpt-zoo[torch,app]"`."""
