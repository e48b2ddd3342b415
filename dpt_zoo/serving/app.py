"""The application: routes of the service, over a queue in front of the detectors."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp

from .._version import __version__
from ..errors import ImageError, InputError
from ..inference.detections import Detections
from ..inference.detector import Detector
from ..inference.limits import Limits
from ..views.layout import Views
from .answers import COCO, PNG, Result, choose_media_type, make_answer
from .batcher import Batcher, ClosedError, EncodedImage, Options, QueueFullError
from .bodies import BodyReader, Received
from .gate import Gate
from .metrics import Metrics
from .problems import MEDIA_TYPE, Problem, Refusal
from .schemas import (
    CocoResult,
    DetectAnswer,
    DetectBody,
    Health,
    Live,
    MaxDetections,
    Model,
    ModelMetadata,
    ModelReady,
    Models,
    Ready,
    Score,
    ServerMetadata,
    SliceOverlap,
    SliceSize,
    TensorMetadata,
)
from .settings import Settings

REF = "#/components/schemas/{model}"
PROBLEM: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}}}
"""How the OpenAPI document describes a refusal."""
MAX_DRAWINGS = 4
"""Images that are detected and drawn at a time: they stay in memory for longer than others."""


class Service:
    """The detectors of a worker and what stands between them and requests.

    Args:
        replicas: the detectors by name, once for each image that is detected at a time.
        settings: the settings of the service.
        api_keys: the keys that clients may use; without any, no key is needed.
    """

    def __init__(
        self, replicas: Sequence[dict[str, Detector]], settings: Settings, api_keys: Sequence[str] = ()
    ) -> None:
        self.detectors, self.settings = replicas[0], settings
        self.metrics = Metrics()
        self.bodies = BodyReader(settings)
        self.is_stopping = False
        self.batcher = Batcher(
            replicas,
            batch_size=settings.choose_batch_size(len(replicas)),
            max_images=settings.max_queue,
            max_pixels=settings.max_pixels,
            max_views=settings.max_views,
            on_queue=self.metrics.queue.set,
            on_batch=lambda model, num_images: self.metrics.batches.labels(model).observe(num_images),
        )
        self._api_keys = [key.encode() for key in api_keys]
        self._drawings = asyncio.Semaphore(MAX_DRAWINGS)

    @property
    def needs_key(self) -> bool:
        """Whether clients need a key."""
        return bool(self._api_keys)

    def check_key(self, key: str) -> None:
        """Refuse a request without one of the keys."""
        matches = [hmac.compare_digest(key.encode(), each) for each in self._api_keys]
        if not any(matches):
            raise Refusal(401, "an API key is needed: Authorization: Bearer KEY")

    def find(self, model: str | None) -> tuple[str, Detector]:
        """Return the name and the detector of a `model`, by default the first one."""
        name = next(iter(self.detectors)) if model is None else model
        if name not in self.detectors:
            raise Refusal(404, f"there is no model of this name, only {', '.join(self.detectors)}")
        return name, self.detectors[name]

    def check_live(self) -> None:
        """Refuse a request if the queue does not work."""
        if not self.batcher.is_alive:
            raise Refusal(503, "a thread of the server has ended", "dead")

    def check_ready(self) -> None:
        """Refuse a request if no images are accepted."""
        self.check_live()
        if self.is_stopping:
            raise Refusal(503, "the server is stopping", "stopping")

    async def detect(self, request: Request, received: Sequence[Received], options: Options) -> list[Result]:
        """Return the detections in the `received` images of a `request`, with its `options`.

        Raises:
            QueueFullError: There are not enough places.
            ClosedError: The service stops.
            Refusal: The client leaves, or the answer would come too late.
        """
        images = [each for each in received if isinstance(each, EncodedImage)]
        results = iter(await self._wait_for(self.batcher.submit(images, options), request))
        return [next(results) if isinstance(each, EncodedImage) else each for each in received]

    async def _wait_for(self, futures: "Sequence[Future[Detections]]", request: Request) -> list[Result]:
        """Return the result of each future."""
        work = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        departure: asyncio.Future[Any] = asyncio.ensure_future(
            request.receive()
        )  # the body is complete: what follows is the end
        try:
            awaited: set[asyncio.Future[Any]] = {work, departure}
            await asyncio.wait(awaited, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return [_check(result) for result in work.result()]
            if departure.done():
                raise Refusal(408, "the client has closed the connection", "client_left")
            raise Refusal(503, f"no answer within {self.settings.timeout:g} s: try again", "timeout")
        finally:
            work.cancel()  # images that wait free their places
            departure.cancel()

    @contextlib.asynccontextmanager
    async def drawing(self) -> AsyncIterator[None]:
        """Limit the number of images that are detected and drawn at a time."""
        try:
            await asyncio.wait_for(self._drawings.acquire(), self.settings.timeout)
        except asyncio.TimeoutError:
            raise Refusal(503, "too many images are drawn at a time: try again", "timeout") from None
        try:
            yield
        finally:
            self._drawings.release()


def _check(result: Detections | BaseException) -> Result:
    """Return detections, or the reason why an image could not be read. Any other exception is raised."""
    if not isinstance(result, Detections | ImageError):
        raise result
    return result


def make_app(service: Service, *, is_local: bool = False) -> ASGIApp:
    """Return the application of a `service`. If `is_local`, it refuses host names of other machines."""
    app = FastAPI(title="DPT Zoo", version=__version__, docs_url=None, redoc_url=None)
    bearer = HTTPBearer(auto_error=False, description="one of the server's API keys")

    async def check_key(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        service.check_key(credentials.credentials if credentials else "")

    keys = [Depends(check_key)] if service.needs_key else []
    private = APIRouter(dependencies=keys, responses=dict.fromkeys((401, 404, 422, 503), PROBLEM))
    _add_detect(private, service)
    _add_models(private, service)
    app.include_router(private)
    _add_health(app, service)

    gate = Gate(app, metrics=service.metrics, is_local=is_local)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return gate.problem(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return gate.problem(Refusal(422, f"{first['loc'][-1]}: {first['msg']}"), request.scope)

    @app.exception_handler(QueueFullError)
    async def refuse_more(request: Request, error: QueueFullError) -> Response:
        return gate.problem(Refusal(503, str(error), "queue_full"), request.scope)

    @app.exception_handler(ClosedError)
    async def refuse_at_the_end(request: Request, error: ClosedError) -> Response:
        return gate.problem(Refusal(503, str(error), "stopping"), request.scope)

    @app.exception_handler(Exception)
    async def apologise(request: Request, error: Exception) -> Response:
        detail = "an unexpected error: the server's log has it under this request_id"
        return gate.problem(HTTPException(500, detail), request.scope)

    # FastAPI documents only what it parses itself.
    _, extra = models_json_schema(
        [(DetectBody, "validation"), (CocoResult, "serialization"), (Problem, "serialization")], ref_template=REF
    )
    app.openapi()["components"]["schemas"] |= extra["$defs"]
    return gate


def _add_detect(router: APIRouter, service: Service) -> None:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {"image": {"type": "array", "items": binary["schema"], "minItems": 1}}}
    forms = {
        "image/*": binary,
        "application/octet-stream": binary,
        "multipart/form-data": {"schema": form | {"required": ["image"]}},
        "application/json": {"schema": {"$ref": REF.format(model="DetectBody")}},
    }
    coco = {"schema": {"type": "array", "items": {"$ref": REF.format(model="CocoResult")}}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": DetectAnswer, "content": {COCO: coco, PNG: binary}, "description": "The detections"},
        **dict.fromkeys((400, 403, 406, 408, 411, 413, 415), PROBLEM),
    }

    @router.post(
        "/v1/detect",
        responses=answers,
        openapi_extra={"requestBody": {"required": True, "content": forms}},
        response_class=JSONResponse,
    )
    async def detect(
        request: Request,
        model: Annotated[str | None, Query(description="a model of /v1/models; by default the first")] = None,
        score_threshold: Annotated[Score | None, Query(description="the lowest score of an object")] = None,
        max_detections: Annotated[MaxDetections | None, Query(description="the most objects of a view")] = None,
        nms_iou: Annotated[Score | None, Query(description="the IoU above which one of two objects is kept")] = None,
        class_agnostic_nms: Annotated[bool, Query(description="compare objects of different classes, too")] = False,
        slice_size: Annotated[SliceSize | None, Query(description="detect in slices of this side, in pixels")] = None,
        slice_overlap: Annotated[SliceOverlap, Query(description="the part that a slice shares with the next")] = 0.2,
        whole_image: Annotated[bool, Query(description="with slices, detect in the whole image, too")] = False,
        tta: Annotated[bool, Query(description="detect at three scales")] = False,
        classes: Annotated[list[str] | None, Query(description="keep only objects of these classes")] = None,
    ) -> Response:
        """Detect the objects in one image or several.

        If some of several images cannot be read, each of them has an `error` in the answer instead of objects.
        """
        media_type = choose_media_type(request.headers.get("accept", ""))
        name, detector = service.find(model)
        if unknown := set(classes or ()) - set(detector.classes):
            raise Refusal(422, f"classes: the model has no class {min(unknown)!r}, see /v1/models")
        threshold = service.settings.score_threshold if score_threshold is None else score_threshold
        try:
            limits = Limits(threshold, max_detections, nms_iou, class_agnostic_nms)
            views = Views(slice_size, slice_overlap, whole_image, tta)
            detector.check(limits, views)
        except InputError as error:
            raise Refusal(422, str(error)) from error
        options = Options(name, limits, views, keep_image=media_type == PNG)
        async with service.bodies.read(request) as received:
            if media_type == PNG and len(received) != 1:
                raise Refusal(406, "only one image can be drawn: ask for JSON, or send one image")
            request.state.fields.update(model=name, images=len(received))
            async with service.drawing() if media_type == PNG else contextlib.nullcontext():
                results = await service.detect(request, received, options)
                if classes:
                    results = [
                        each.filter(classes=classes) if isinstance(each, Detections) else each for each in results
                    ]
                answer = await make_answer(media_type, name, results)
            num_errors = sum(not isinstance(each, Detections) for each in results)
            service.metrics.errors.labels("unreadable_image").inc(num_errors)  # beside others that were read
            return answer


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    async def models() -> Models:
        """List the models that the server runs."""
        return Models(models=[_describe(name, service) for name in service.detectors])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics of all workers, for Prometheus."""
        return Response(await asyncio.to_thread(service.metrics.render), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/v2")
    async def server_metadata() -> ServerMetadata:
        """Describe the server, as KServe's protocol version 2 does."""
        return ServerMetadata(name="dpt-zoo", version=__version__, extensions=[])

    @router.get("/v2/models/{name}")
    async def model_metadata(name: str) -> ModelMetadata:
        """Describe a model, as KServe's protocol version 2 does."""
        _, detector = service.find(name)
        return _describe_tensors(name, detector)

    @router.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> ModelReady:
        """Return whether a model can detect."""
        service.find(name)
        service.check_ready()
        return ModelReady(name=name, ready=True)


def _add_health(app: FastAPI, service: Service) -> None:
    """Add the routes for probes, which need no key."""
    unavailable: dict[int | str, dict[str, Any]] = {503: PROBLEM}

    @app.get("/health/live", responses=unavailable)
    async def live() -> Health:
        """Return whether the server works."""
        service.check_live()
        return Health(status="ok")

    @app.get("/health/ready", responses=unavailable)
    async def ready() -> Health:
        """Return whether the server accepts images: its models are loaded and have detected, and it is not stopping."""
        service.check_ready()
        return Health(status="ok")

    @app.get("/v2/health/live", responses=unavailable)
    async def kserve_live() -> Live:
        """Return whether the server works."""
        service.check_live()
        return Live(live=True)

    @app.get("/v2/health/ready", responses=unavailable)
    async def kserve_ready() -> Ready:
        """Return whether the server accepts images."""
        service.check_ready()
        return Ready(ready=True)


def _describe(name: str, service: Service) -> Model:
    detector = service.detectors[name]
    return Model(
        name=name,
        classes=list(detector.classes),
        has_masks=detector.has_masks,
        score_threshold=service.settings.score_threshold,
        weights_sha256=detector.weights_sha256,
    )


def _describe_tensors(name: str, detector: Detector) -> ModelMetadata:
    outputs = [
        TensorMetadata(name="boxes", datatype="FP32", shape=[-1, 4]),
        TensorMetadata(name="scores", datatype="FP32", shape=[-1]),
        TensorMetadata(name="labels", datatype="INT64", shape=[-1]),
    ]
    if detector.has_masks:
        outputs.append(TensorMetadata(name="masks", datatype="BYTES", shape=[-1]))  # compressed
    return ModelMetadata(
        name=name,
        platform="pytorch" if detector.metadata is None else "dpt_zoo_exported",
        inputs=[TensorMetadata(name="image", datatype="BYTES", shape=[1])],
        outputs=outputs,
    )
