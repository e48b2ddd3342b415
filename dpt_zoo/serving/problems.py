"""Refusals of requests, and the one form in which they are sent: JSON as in RFC 9457."""

from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""The wait that a busy server asks for."""


class Refusal(HTTPException):
    """A refused request.

    Args:
        status: the status code of the answer.
        kind: what is wrong, for the metrics: by default the name of the status, such as "not_found".
        detail: what is wrong and what to do, for people.
    """

    def __init__(self, status: int, detail: str, kind: str | None = None) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        super().__init__(status, detail, headers)
        self.kind = kind


class Problem(BaseModel):
    """What is wrong with a request."""

    status: int
    title: str
    detail: str
    request_id: str


def error_kind(error: HTTPException) -> str:
    """Return what is wrong with a request, in one word for the metrics."""
    return getattr(error, "kind", None) or HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")


def problem_response(error: HTTPException, request_id: str) -> JSONResponse:
    """Return the response for an `error` of the request with a `request_id`."""
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(status=error.status_code, title=title, detail=error.detail, request_id=request_id)
    return JSONResponse(problem.model_dump(), error.status_code, error.headers, MEDIA_TYPE)
