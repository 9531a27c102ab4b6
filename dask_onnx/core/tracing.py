"""Spans of OpenTelemetry around requests and their parts, if this process records any.

The context of a request travels with its tasks, so that the spans of the client, the scheduler and
the workers are one trace. A process records spans if it has set a tracer provider of
OpenTelemetry's SDK; in any other one these functions do nothing and import nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

Carrier = tuple[tuple[str, str], ...]
"""Context of a trace as pairs of names and values, in W3C's form; empty without one."""

_API = "opentelemetry.trace"


def _api() -> Any:
    """Return OpenTelemetry's interface if something in this process has imported it."""
    return sys.modules.get(_API)


@contextlib.contextmanager
def span(name: str, carrier: Carrier = (), **attributes: str | int | float) -> Iterator[None]:
    """Record a span around a block; an error in it ends the span with its status.

    Parameters
    ----------
    name : str
        Name of the span behind ``dask_onnx.``.
    carrier : Carrier
        Context that the span belongs to; by default the current one of this process.
    **attributes : str, int or float
        Attributes, whose names get ``dask_onnx.`` in front.
    """
    api = _api()
    if api is None:
        yield
        return
    parent = None
    if carrier:
        parent = importlib.import_module("opentelemetry.propagate").extract(dict(carrier))
    named = {f"dask_onnx.{key}": value for key, value in attributes.items()}
    tracer = api.get_tracer("dask_onnx")
    with tracer.start_as_current_span(f"dask_onnx.{name}", context=parent, attributes=named):
        yield


def current_carrier() -> Carrier:
    """Return the context of the current span, to be sent with a task; empty if there is none."""
    if _api() is None:
        return ()
    found: dict[str, str] = {}
    importlib.import_module("opentelemetry.propagate").inject(found)
    return tuple(sorted(found.items()))


def current_trace() -> dict[str, str]:
    """Return the identifiers of the current span in hexadecimal, for logs; empty without one."""
    api = _api()
    context = None if api is None else api.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
