"""The charts and tables of a report of a profile, and their embedding in a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bokeh.document import Document
from bokeh.embed import components
from bokeh.resources import Resources

from dask_onnx.diagnostics.profiling.profile_rows import Row, rows_of
from dask_onnx.diagnostics.profiling.report_graphs import (
    link_matrix,
    prediction_chart,
    stage_graph,
)
from dask_onnx.diagnostics.profiling.report_tables import (
    NODE_COLUMNS,
    STAGE_COLUMNS,
    STREAM_COLUMNS,
    WORKER_COLUMNS,
    node_rows,
    table,
)
from dask_onnx.diagnostics.profiling.report_theme import paint
from dask_onnx.diagnostics.profiling.report_timeline import (
    memory_chart,
    share_chart,
    time_line,
    time_range,
)
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.time_shares import time_shares


class Part(NamedTuple):
    """A chart or a table of a report."""

    model: Any
    """Bokeh's model; None for a part without a chart."""
    title: str
    text: str
    """Description, in a sentence."""
    left_out: str = ""
    """Contents that were left out."""


class Embedded(NamedTuple):
    """Scripts and styles with which a page shows Bokeh's models."""

    resources: str
    """Bokeh's own scripts, as elements of a page."""
    script: str
    """The script with all data."""
    places: Mapping[str, str]
    """Element of each part."""


_Made = tuple[str, Any, str, str]
"""Name of a part, its model with or without what is left out (None for none), title and text."""


def parts_of(profile: RunProfile) -> dict[str, Part]:
    """Return the charts and tables of a profile that have something to show, in their order."""
    over = time_range(profile)
    stages = rows_of(profile, "stage")
    found: dict[str, Part] = {}
    made_parts = (
        *_time_parts(profile, over),
        *_stage_parts(profile, stages),
        *_link_and_node_parts(profile),
        *_process_parts(profile, over),
    )
    for name, made, title, text in made_parts:
        if made is not None:
            model, left_out = made if isinstance(made, tuple) else (made, "")
            found[name] = Part(model, title, text, left_out)
    return found


def _time_parts(profile: RunProfile, over: Any) -> Iterator[_Made]:
    yield (
        "shares",
        share_chart(time_shares(profile), profile),
        "Where the time went",
        "Seconds of all slots, and of those of each worker, by what they did.",
    )
    if profile.tasks or profile.transfers:
        yield (
            "time",
            time_line(profile, over),
            "Time line",
            "A lane for each thread slot of a worker, and one for the values that it gets. Drag to "
            "zoom.",
        )


def _stage_parts(profile: RunProfile, stages: list[Row]) -> Iterator[_Made]:
    if stages:
        yield (
            "graph",
            stage_graph(profile, stages),
            "Stages",
            "Darker boxes took longer. The stripe has the stage's colour in Dask's dashboard.",
        )
        yield (
            "stages",
            table(stages, STAGE_COLUMNS),
            "Stages in numbers",
            "Times are seconds of all tasks together. Click a title to sort.",
        )
    yield (
        "predictions",
        prediction_chart(stages),
        "Predicted and measured",
        "Seconds of all runs of a stage beside those that the cost model predicts for the shapes "
        "that ran.",
    )


def _link_and_node_parts(profile: RunProfile) -> Iterator[_Made]:
    yield (
        "links",
        link_matrix(rows_of(profile, "link")),
        "Links",
        "Bytes that were sent, and the rate while any were on their way. They are those of Dask's "
        "messages: a network's own counters add the headers of packets.",
    )
    nodes = node_rows(rows_of(profile, "node"))
    if nodes:
        yield (
            "nodes",
            table(nodes, NODE_COLUMNS),
            "Nodes",
            "Seconds are scaled from the sample to all runs. The limit is what the host can do by "
            "arithmetic or by memory, whichever is nearer.",
        )


def _process_parts(profile: RunProfile, over: Any) -> Iterator[_Made]:
    yield (
        "memory",
        memory_chart(profile, over),
        "Memory",
        "Resident bytes of each worker; dashed: as its plans project.",
    )
    if profile.workers:
        yield (
            "workers",
            table(rows_of(profile, "worker"), WORKER_COLUMNS),
            "Workers in numbers",
            "Clock offsets have been taken out of all times.",
        )
    if profile.streams:
        yield (
            "streams",
            table(rows_of(profile, "stream"), STREAM_COLUMNS),
            "Streams",
            "Frames of each stream, and seconds from a frame's arrival to its result.",
        )


def embed(parts: Mapping[str, Part]) -> Embedded:
    """Return what a page needs to show the parts, without any network."""
    document = Document()
    models = {name: part.model for name, part in parts.items()}
    for model in models.values():
        document.add_root(model)
    paint(document)
    script, places = components(models)
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    return Embedded(resources.render(), script, places)
