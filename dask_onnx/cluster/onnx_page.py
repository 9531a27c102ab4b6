"""The page ``/onnx`` of Dask's dashboard, and its parts as panels; needs Bokeh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bokeh.layouts import column

from dask_onnx.cluster.page_feed import Feed, OnnxPart
from dask_onnx.cluster.page_graph import Headline, PlanGraph
from dask_onnx.cluster.page_tables import (
    FailureTable,
    LinkTable,
    StageTable,
    StreamTable,
    WorkerTable,
)
from dask_onnx.core.dashboard_internals import dress_page

_REFRESH_MS = 1000

PARTS: Mapping[str, type[OnnxPart]] = {
    "onnx-plans": PlanGraph,
    "onnx-stages": StageTable,
    "onnx-workers": WorkerTable,
    "onnx-links": LinkTable,
    "onnx-streams": StreamTable,
    "onnx-failures": FailureTable,
}
"""Parts that are panels of their own, by the end of their address."""


class _Page:
    """Parts of one open page, brought up to date together."""

    def __init__(self, scheduler: Any, parts: list[type[Any]]) -> None:
        self.feed = Feed(scheduler)
        self.parts = [part(self.feed) for part in parts]

    def update(self) -> None:
        """Read the scheduler, and show it."""
        self.feed.read()
        for part in self.parts:
            part.update(self.feed)


def page(scheduler: Any, extra: Mapping[str, Any], document: Any) -> None:
    """Fill the document of the page ``/onnx``."""
    found = _Page(
        scheduler,
        [Headline, PlanGraph, StageTable, WorkerTable, StreamTable, LinkTable, FailureTable],
    )
    head, graph, stages, workers, streams, links, failures = (part.root for part in found.parts)
    tables = stages, workers, streams, links, failures
    root = column(head, graph, *tables, sizing_mode="stretch_width")
    document.add_root(root)
    dress_page(document, found, _REFRESH_MS, "Dask: ONNX", extra)


def panel(kind: type[Any]) -> Callable[[Any, Mapping[str, Any], Any], None]:
    """Return what fills the document of a panel."""

    def fill(scheduler: Any, extra: Mapping[str, Any], document: Any) -> None:
        found = _Page(scheduler, [kind])
        document.add_root(found.parts[0].root)
        dress_page(document, found, _REFRESH_MS, f"Dask: {kind.__name__}", None)

    return fill


def pages() -> dict[str, Callable[..., None]]:
    """Return what fills the document of each address."""
    panels = {f"/individual-{name}": panel(kind) for name, kind in PARTS.items()}
    return {"/onnx": page, **panels}
