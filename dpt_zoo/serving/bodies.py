"""The images of a request: its body is an image file, a form with files, or JSON."""

import asyncio
import base64
import binascii
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future

from pydantic import ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..errors import FetchError
from ..utils.http import read_url, url_host
from ..utils.request_checks import content_length, limited
from ..utils.urls import redact
from .batcher import EncodedImage
from .problems import Refusal
from .schemas import Base64Image, DetectBody, UrlImage
from .settings import Settings

MAX_BODIES = 512 << 20
"""Bytes of all bodies in memory."""
BODY_SECONDS = 60.0
"""Longest time for a body to arrive."""
MAX_FETCHES = 8
"""Images at URLs that are fetched at a time."""
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types, besides image/..., of a body that is an image file. The last is what curl sends by default."""

Received = EncodedImage | FetchError
"""An image, or the reason why it could not be fetched."""


class BodyReader:
    """Reads the bodies of requests within the limits of `settings`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._num_bytes = 0  # of all bodies in memory
        self._fetches = threading.Semaphore(MAX_FETCHES)

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[Received]]:
        """Yield the images of a request. Its body counts as in memory until the block ends.

        Raises:
            Refusal: The body is too long, arrives too slowly, or does not contain images in one of the three forms.
        """
        length = content_length(request.headers, self._settings.max_bytes)
        chunks: list[bytes] = []
        try:
            stream = Request(request.scope, limited(request.receive, length)).stream()
            try:
                await asyncio.wait_for(self._receive(stream, chunks), BODY_SECONDS)
            except asyncio.TimeoutError:
                raise Refusal(408, "the body arrives too slowly") from None
            try:
                images = await asyncio.wait_for(self._parse(request, b"".join(chunks)), self._settings.timeout)
            except asyncio.TimeoutError:
                raise Refusal(503, "the images at URLs arrive too slowly: try again", "timeout") from None
            yield images
        finally:
            self._num_bytes -= sum(map(len, chunks))

    async def _receive(self, stream: AsyncIterator[bytes], chunks: list[bytes]) -> None:
        async for chunk in stream:
            chunks.append(chunk)
            self._num_bytes += len(chunk)
            if self._num_bytes > MAX_BODIES:
                raise Refusal(503, "the server receives too much at a time: try again", "too_many_bytes")

    async def _parse(self, request: Request, body: bytes) -> list[Received]:
        """Return the images in a body."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            content = await asyncio.to_thread(_parse_json, body)
            self._check_count(len(content.images))
            named = [self._read_item(image, f"image-{number}") for number, image in enumerate(content.images, 1)]
            return list(await asyncio.gather(*named))
        if media_type == "multipart/form-data":
            return await self._read_form(request, body)
        if media_type.startswith("image/") or media_type in RAW_TYPES:
            return [EncodedImage("image-1", body)]
        raise Refusal(415, "the body is an image file, multipart/form-data with files, or application/json")

    def _check_count(self, num_images: int) -> None:
        if num_images > self._settings.max_images:
            raise Refusal(413, f"at most {self._settings.max_images:,} images are accepted in a request")

    async def _read_form(self, request: Request, body: bytes) -> list[Received]:
        """Return the files of a form."""

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        parser = MultiPartParser(request.headers, stream(), max_files=self._settings.max_images, max_fields=0)
        parser.spool_max_size = self._settings.max_bytes  # nothing is written to a disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refusal(400, f"the form cannot be read: {error.message}") from error
        files = [file for _, file in form.multi_items() if not isinstance(file, str)]
        if not files:
            raise Refusal(400, "the form has no file: curl -F image=@photo.jpg sends one")
        return [
            EncodedImage(file.filename or f"image-{number}", await file.read()) for number, file in enumerate(files, 1)
        ]

    async def _read_item(self, image: Base64Image | UrlImage, name: str) -> Received:
        """Return an image of a JSON body; `name` is used if it has none."""
        if isinstance(image, UrlImage):
            return await self._fetch(image.url)
        try:
            return EncodedImage(image.name or name, base64.b64decode(image.base64, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Refusal(400, f"{image.name or name} is not base64: {error}") from error

    async def _fetch(self, url: str) -> Received:
        """Return an image at a URL."""
        hosts, limit = self._settings.url_hosts, self._settings.max_bytes
        if url_host(url) not in hosts or not url.lower().startswith(("http://", "https://")):
            raise Refusal(403, f"{redact(url)} is not fetched: the server allows no URLs of this host", "url_host")
        if not self._fetches.acquire(blocking=False):
            raise Refusal(503, "too many URLs are fetched at a time: try again", "too_many_urls")
        future: Future[Received] = Future()

        def fetch() -> None:
            try:
                future.set_result(EncodedImage(redact(url), read_url(url, limit, hosts)))
            except FetchError as error:
                future.set_result(FetchError(f"{redact(url)}: {error}"))
            except Exception as error:
                future.set_exception(error)
            finally:
                self._fetches.release()

        threading.Thread(target=fetch, daemon=True).start()  # the server can stop while it waits
        return await asyncio.shield(asyncio.wrap_future(future))


def _parse_json(body: bytes) -> DetectBody:
    try:
        return DetectBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(422, f"the JSON body is invalid: {place}: {first['msg']}") from error
