"""Explain why OpenCV cannot be imported: its desktop build needs graphics libraries that many servers lack."""

import contextlib
import re
from collections.abc import Iterator

from ..errors import DependencyError


@contextlib.contextmanager
def explain_opencv_import() -> Iterator[None]:
    """Turn the `ImportError` of a missing graphics library, such as libGL.so.1, into a helpful `DependencyError`."""
    try:
        yield
    except ImportError as error:
        if not re.match(r"lib(GL|EGL|gthread|glib|xcb|X|SM|ICE)[\w.-]*: cannot open shared object", str(error)):
            raise
        raise DependencyError(
            f"OpenCV cannot be imported ({error}): on a machine without graphics libraries, run "
            "`pip uninstall --yes opencv-python` and `pip install --force-reinstall --no-deps opencv-python-headless`."
        ) from error
