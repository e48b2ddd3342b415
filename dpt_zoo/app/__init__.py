"""A page in the browser that finds objects in images. It needs Gradio, which `pip install "dpt-zoo[app]"` brings."""
