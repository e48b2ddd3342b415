"""An explained failure to import OpenCV, whose desktop build needs graphics libraries that servers often lack."""

import contextlib
import re
from collections.abc import Iterator

from ..errors import DependencyError


@contextlib.contextmanager
def explain_opencv_import() -> Iterator[None]:
    """Turn a failed import of OpenCV's desktop build into a `DependencyError` that names the remedy.

    Raises:
        DependencyError: A shared library that OpenCV's desktop build needs is missing, for example `libGL.so.1`.
    """
    try:
        yield
    except ImportError as error:
        if not re.match(r"lib(GL|EGL|gthread|glib|xcb|X|SM|ICE)[\w.-]*: cannot open shared object", str(error)):
            raise
        raise DependencyError(
            f"OpenCV cannot be imported ({error}): on a machine without graphics libraries, run "
            "`pip uninstall --yes opencv-python` and `pip install --force-reinstall --no-deps opencv-python-headless`."
        ) from error
