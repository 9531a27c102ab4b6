"""Log records with fields: one sentence for people, and the same facts for programs.

Everything is logged below the logger ``dask_onnx``: DEBUG for each request and each run of a stage,
INFO for what happens once (a session is built, a cluster is configured), WARNING for what a user
should act on.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from dask_onnx.core.formatting import printable
from dask_onnx.core.tracing import current_trace

LOGGER_NAME = "dask_onnx"
FIELDS = "dask_onnx"
"""Attribute of a log record that holds its fields."""


def log_event(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    """Log an event with its numbers.

    Parameters
    ----------
    logger : Logger
        Logger of the module, below ``dask_onnx``.
    level : int
        Level, such as ``logging.INFO``.
    event : str
        Name of the event, always in the same words: "session built".
    **fields : object
        Facts by name with their unit, as values that JSON has.
    """
    if not logger.isEnabledFor(level):
        return
    facts = ", ".join(f"{name}={_shown(value)}" for name, value in fields.items())
    logger.log(
        level,
        "%s",
        f"{event}: {facts}" if facts else event,
        extra={FIELDS: {"event": event, **fields}},
        stacklevel=2,
    )


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


class JsonFormatter(logging.Formatter):
    """Formats each record as a line of JSON, with its fields and the trace that it belongs to.

    Examples
    --------
    >>> handler = logging.StreamHandler()
    >>> handler.setFormatter(JsonFormatter())
    >>> logging.getLogger("dask_onnx").addHandler(handler)
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
            **current_trace(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)
