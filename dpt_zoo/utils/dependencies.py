"""Explain why a library cannot be imported: an extra contains it, or OpenCV lacks graphics libraries."""

import contextlib
import re
from collections.abc import Iterator

from ..errors import DependencyError

EXTRAS = {
    "torch": (
        *("torch", "torchvision", "timm", "mmdet", "mmengine", "mmcv"),
        *("defusedxml", "faster_coco_eval", "matplotlib", "psutil", "supervision"),
    ),
    "export": ("onnx", "onnxscript"),
    "quantize": ("nncf",),
    "openvino": ("openvino",),
    "hub": ("huggingface_hub",),
    "video": ("av",),
    "track": ("trackers",),
    "large": ("tifffile",),
    "scale": ("pyarrow", "fsspec"),
    "ray": ("ray",),
    "webdataset": ("webdataset",),
    "app": ("gradio",),
    "serve": ("fastapi", "prometheus_client", "python_multipart", "uvicorn"),
    "demo": ("sklearn",),
    "datasets": ("datasets",),
    "loggers": ("tensorboard", "wandb", "mlflow", "clearml"),
}
"""The extras of `setup.py`, and the packages that only they install."""


@contextlib.contextmanager
def explain_imports() -> Iterator[None]:
    """Turn the `ImportError` of an extra's package, or of OpenCV's desktop build, into a helpful `DependencyError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        raise DependencyError(
            f'this needs {package}, which is not installed: pip install "dpt-zoo[{extra}]"'
        ) from error
    except ImportError as error:
        if not re.match(r"lib(GL|EGL|gthread|glib|xcb|X|SM|ICE)[\w.-]*: cannot open shared object", str(error)):
            raise
        raise DependencyError(
            f"OpenCV cannot be imported ({error}): on a machine without graphics libraries, run "
            "`pip uninstall --yes opencv-python` and `pip install --force-reinstall --no-deps opencv-python-headless`."
        ) from error
