"""Logs as JSON lines."""

import json
import logging
import sys
from datetime import datetime, timezone

from ..utils.urls import redact_all


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, and its "fields". URLs are redacted."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a `record`."""
        content = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact_all(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["exception"] = redact_all(self.formatException(record.exc_info))
        return json.dumps(content)


def log_as_json() -> None:
    """Write all logs of this process to standard error as JSON lines: requests, and warnings of libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dpt_zoo").setLevel(logging.INFO)
