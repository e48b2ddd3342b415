"""A web page for trying models on images. It needs Gradio: `pip install "dpt-zoo[app]"`."""
