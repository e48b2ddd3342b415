"""A client of the service. It needs no FastAPI and no PyTorch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from ..errors import ImageError, ServiceError
from ..inference.detections import Detections
from ..inference.detector import ImageLike
from ..inference.inputs import find_input, is_url
from ..utils.images import encode_png
from ..utils.json_files import DAMAGE
from ..utils.urls import redact, redact_all

UNREADABLE, BUSY = 400, 503
"""The statuses with which a server refuses an image, and with which it asks to try again."""
BINARY = {"Content-Type": "application/octet-stream"}


class Client:
    """Detects objects with a server of `dpt-zoo serve`, as a `Detector` does.

    Args:
        url: the URL of the server, such as "http://127.0.0.1:8000".
        model: one of the server's models; by default its first one.
        api_key: a key, if the server needs one.
        timeout: seconds to wait for an answer. A busy server is asked up to five times.
    """

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None, timeout: float = 60) -> None:
        self._url, self._model, self._timeout = url.rstrip("/"), model, timeout
        self._session = requests.Session()
        retry = Retry(
            4,
            connect=0,
            read=0,
            status_forcelist=[BUSY],
            allowed_methods=None,
            backoff_factor=0.5,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        if api_key is not None:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes of the model."""
        answer = self._send("GET", "/v1/models")
        try:
            models = {each["name"]: tuple(each["classes"]) for each in answer["models"]}
            return models[self._model or next(iter(models), "")]
        except DAMAGE as error:
            raise self._unexpected(error) from error

    def __call__(
        self,
        image: ImageLike,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        nms_iou: float | None = None,
        class_agnostic_nms: bool | None = None,
        slice_size: int | None = None,
        slice_overlap: float | None = None,
        whole_image: bool | None = None,
        tta: bool | None = None,
        classes: Sequence[str] | None = None,
    ) -> Detections:
        """Detect the objects in one image.

        Args:
            image: as for a `Detector`. A file is sent as it is, anything else as PNG; a URL is fetched by this machine.
            score_threshold: the lowest score of an object, in [0, 1]; by default the server's.
            max_detections, nms_iou, class_agnostic_nms: as for `Detector`; at most 1,000 objects.
            slice_size, slice_overlap, whole_image, tta: as for a call of a `Detector`. The server limits the views.
            classes: keep only objects of these classes.

        Raises:
            ImageError: The image cannot be read.
            ServiceError: The server cannot be reached, is busy, or refuses the request.
        """
        options = {"model": self._model, **locals()}
        del options["self"], options["image"]
        origin, content = _encode(image)
        answer = self._send("POST", "/v1/detect", params=options, data=content, headers=BINARY)
        try:
            return replace(Detections.from_json(answer["images"][0], self.classes), path=origin)
        except DAMAGE as error:
            raise self._unexpected(error) from error

    def _send(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._session.request(method, f"{self._url}{path}", timeout=self._timeout, **content)
            answer = response.json()
        except (requests.RequestException, *DAMAGE) as error:
            raise ServiceError(f"{redact(self._url)} gives no answer: {redact_all(str(error))}") from error
        if response.ok:
            return answer
        detail = answer.get("detail") if isinstance(answer, dict) else answer
        refused = f"{redact(self._url)} refuses the request ({response.status_code}): {detail}"
        raise ImageError(str(detail)) if response.status_code == UNREADABLE else ServiceError(refused)

    def _unexpected(self, error: Exception) -> ServiceError:
        return ServiceError(f"{redact(self._url)} gives an answer that `dpt-zoo serve` does not give: {error!r}")


def _encode(image: ImageLike) -> tuple[str, bytes]:
    """Return the name of an image, and an image file's bytes."""
    found = find_input(image)
    if isinstance(image, bytes | bytearray):
        return found.origin, bytes(image)
    if isinstance(image, str | Path) and not is_url(image):
        try:
            return found.origin, Path(found.origin).read_bytes()
        except OSError as error:
            raise ImageError(f"{found.origin}: the file cannot be read: {error.strerror}") from error
    return found.origin, encode_png(Image.fromarray(found.read()))
