"""The bodies of requests and answers, as pydantic's models: the source of the OpenAPI document."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..views.layout import MAX_OVERLAP, MIN_SLICE


class Base64Image(BaseModel):
    """An image file, encoded as base64."""

    model_config = ConfigDict(extra="forbid")

    base64: str = Field(min_length=1)
    name: str | None = Field(None, max_length=1000, description="the name of the image in the answer")


class UrlImage(BaseModel):
    """An image at a URL. The server fetches only those of hosts that its operator allows."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, max_length=8000)


class DetectBody(BaseModel):
    """The body of a request as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: list[Base64Image | UrlImage] = Field(min_length=1)


class Mask(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="height and width of the image, in pixels")
    counts: str


class Object(BaseModel):
    """A detected object."""

    name: str = Field(description="the name of its class")
    label: int = Field(ge=0, description="the index of its class")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2, in pixels of the image")
    mask: Mask | None = Field(None, description="only of models that have masks")


class ImageDetections(BaseModel):
    """The objects in an image, by descending score."""

    path: str = Field(description="the name of the image")
    width: int
    height: int
    has_masks: bool
    objects: list[Object]


class ImageFailure(BaseModel):
    """The reason why an image could not be read."""

    error: str = Field(description="it begins with the name of the image")


class DetectAnswer(BaseModel):
    """The detections in the images of a request, in the same order."""

    model: str
    images: list[ImageDetections | ImageFailure]


class CocoResult(BaseModel):
    """A detected object in COCO's results format."""

    image_id: int = Field(ge=1, description="the number of the image in the request, from 1")
    category_id: int = Field(ge=1, description="COCO's own id of the class, or for other classes the label plus 1")
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height, in pixels of the image")
    score: float
    segmentation: Mask | None = None


class Model(BaseModel):
    """A model that the server runs."""

    name: str
    classes: list[str]
    has_masks: bool
    score_threshold: float = Field(description="the lowest score of an object, unless a request says otherwise")
    weights_sha256: str


class Models(BaseModel):
    """All models of the server. The first is the one that requests use by default."""

    models: list[Model]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok"]


class Live(BaseModel):
    """KServe's answer on whether the server runs."""

    live: Literal[True]


class Ready(BaseModel):
    """KServe's answer on whether a server can detect."""

    ready: Literal[True]


class ModelReady(Ready):
    """KServe's answer on whether a model can detect."""

    name: str


class ServerMetadata(BaseModel):
    """KServe's metadata of a server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """KServe's metadata of an input or an output; -1 in a shape is any number."""

    name: str
    datatype: Literal["BYTES", "FP32", "INT64"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """KServe's metadata of a model."""

    name: str
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


MaxDetections = Annotated[int, Field(ge=1, le=1000)]
SliceSize = Annotated[int, Field(ge=MIN_SLICE)]
SliceOverlap = Annotated[float, Field(ge=0, le=MAX_OVERLAP)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
