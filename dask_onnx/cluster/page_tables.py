"""Tables of the page ``/onnx``: stages, workers, links and failures; needs Bokeh."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from html import escape
from typing import Any

from bokeh.layouts import column
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    DataTable,
    Div,
    HTMLTemplateFormatter,
    NumberFormatter,
    StringFormatter,
    TableColumn,
)

from dask_onnx.cluster.page_facts import stream_state, tasks_left, tasks_waiting
from dask_onnx.cluster.page_feed import Feed, OnnxPart
from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_bytes, printable

_COLOUR = '<span style="color:<%= colour %>">&#9632;</span> <%- value %>'
"""A name with its colour on the dashboard; `<%-` escapes it."""
_MOST_LINKS = 200
"""Links that are shown."""
_MOST_GONE = 3
"""Workers that are gone and named."""
_STATUS = (
    '<span style="<%= ["running", "ended"].includes(value)'
    ' ? "" : "color:#b42318;font-weight:600" %>"><%- value %></span>'
)


class _Table(OnnxPart):
    """A table that is filled again each time."""

    def __init__(
        self, title: str, columns: Mapping[str, tuple[str, Any, int]], height: int
    ) -> None:
        names = [*columns, "colour"]
        self.title = title
        self.source = ColumnDataSource({name: [] for name in names})
        self.heading = Div(text="", margin=(8, 12, 0, 12))
        self.table = DataTable(
            source=self.source,
            columns=[
                TableColumn(field=name, title=shown, formatter=formatter, width=width)
                for name, (shown, formatter, width) in columns.items()
            ],
            height=height,
            sizing_mode="stretch_width",
            autosize_mode="force_fit",
            reorderable=False,
            index_position=None,
            margin=(2, 12, 8, 12),
        )
        # Bokeh's tables do not notice other data of the same length.
        redraw = CustomJS(args={"view": self.table.view}, code="view.change.emit()")
        self.source.js_on_change("data", redraw)
        self.root = column(self.heading, self.table, sizing_mode="stretch_width")

    def show(self, rows: list[dict[str, Any]], note: str = "") -> None:
        """Show rows, each with all columns."""
        self.heading.text = f"<b>{self.title}</b> {escape(note)}"
        self.source.data.update(
            {name: [each.get(name, "") for each in rows] for name in self.source.data}
        )


def _text() -> Any:
    return StringFormatter()


def _named() -> Any:
    return HTMLTemplateFormatter(template=_COLOUR)


def _number(form: str = "0,0") -> Any:
    return NumberFormatter(format=form, text_align="right", nan_format="-")


class StageTable(_Table):
    """Stages with their tasks, rates and seconds."""

    def __init__(self, feed: Feed) -> None:
        columns = {
            "name": ("stage", _named(), 230),
            "model": ("model", _text(), 120),
            "running": ("on workers", _number(), 70),
            "waiting": ("waiting", _number(), 60),
            "done": ("done", _number(), 60),
            "failed": ("failed", _number(), 50),
            "rate": ("tasks/s", _number("0,0.0"), 60),
            "seconds": ("seconds a task", _number("0,0.0000"), 90),
            "transfer": ("transfer seconds", _number("0,0.00"), 100),
            "bytes": ("bytes of results", _text(), 100),
        }
        super().__init__("Stages", columns, 230)

    def update(self, feed: Feed) -> None:
        """Show stages, those with most work left first."""
        rates = feed.rates
        order = sorted(feed.facts.stages, key=lambda each: (-tasks_left(each), each.name))
        self.show([
            {
                "name": printable(each.name),
                "model": printable(each.model),
                "running": each.states.get("processing", 0),
                "waiting": tasks_waiting(each),
                "done": each.completed,
                "failed": each.states.get("erred", 0),
                "rate": rates.get(each.name, 0.0),
                "seconds": each.seconds or float("nan"),
                "transfer": feed.facts.transfer_seconds.get(each.name, 0.0),
                "bytes": format_bytes(each.bytes),
                "colour": colour_of(each.name),
            }
            for each in order
        ])  # fmt: skip


class WorkerTable(_Table):
    """Workers with what they run, their sessions, memory and stores."""

    def __init__(self, feed: Feed) -> None:
        columns = {
            "address": ("worker", _text(), 170),
            "status": ("status", HTMLTemplateFormatter(template=_STATUS), 65),
            "running": ("running", _text(), 240),
            "busy": ("threads", _text(), 55),
            "queue": ("queue", _number(), 50),
            "cpu": ("CPU %", _number("0"), 50),
            "memory": ("memory", _text(), 130),
            "spilled": ("spilled", _text(), 65),
            "sessions": ("sessions", _number(), 60),
            "store": ("store", _text(), 220),
            "free": ("free there", _text(), 70),
        }
        super().__init__("Workers", columns, 180)

    def update(self, feed: Feed) -> None:
        """Show all workers."""
        notes = [] if feed.facts.workers else ["There are none: nothing can run until one joins."]
        if feed.facts.gone:
            left = [
                f"{address} at {time.strftime('%H:%M:%S', time.localtime(at))}"
                for at, address in feed.facts.gone[:_MOST_GONE]
            ]
            more = len(feed.facts.gone) - len(left)
            notes.append(f"Gone: {', '.join(left)}{f', and {more:,} before' if more else ''}.")
        self.show([self._row(each, feed) for each in feed.facts.workers], " ".join(notes))

    @staticmethod
    def _row(each: Any, feed: Feed) -> dict[str, Any]:
        own = feed.facts.own.get(each.address, {})
        limit = f" of {format_bytes(each.memory_limit)}" if each.memory_limit else ""
        running = ", ".join(printable(name) for name in dict.fromkeys(each.running))
        free = own.get("store_free_bytes")
        return {
            "address": each.address,
            "status": each.status,
            "running": running,
            "busy": f"{len(each.running)}/{each.threads}",
            "queue": max(each.processing - len(each.running), 0),
            "cpu": each.cpu,
            "memory": f"{format_bytes(each.memory)}{limit}",
            "spilled": format_bytes(each.spilled),
            "sessions": own.get("sessions", float("nan")),
            "store": printable(str(own.get("store", ""))),
            "free": "" if free is None else format_bytes(free),
        }


class LinkTable(_Table):
    """Links between workers, the slowest first."""

    def __init__(self, feed: Feed) -> None:
        columns = {
            "sender": ("from", _text(), 180),
            "receiver": ("to", _text(), 180),
            "bytes": ("bytes", _text(), 75),
            "wire": ("on the wire", _text(), 75),
            "rate": ("MB/s", _number("0,0.0"), 60),
        }
        super().__init__("Links", columns, 160)

    def update(self, feed: Feed) -> None:
        """Show the links that were used."""
        here = {each.address for each in feed.facts.workers}
        rates = {(each.sender, each.receiver): each.rate for each in feed.facts.links}
        sent = feed.facts.sent
        links = {link for link in (*rates, *sent) if here.issuperset(link)}
        order = sorted(links, key=lambda link: (rates.get(link, math.inf), link))
        self.show([
            {
                "sender": link[0],
                "receiver": link[1],
                "bytes": format_bytes(sent[link].plain) if link in sent else "",
                "wire": format_bytes(sent[link].wire) if link in sent else "",
                "rate": rates.get(link, math.nan) / 1e6,
            }
            for link in order[:_MOST_LINKS]
        ], "" if order else "No values have gone from one worker to another.")  # fmt: skip


class StreamTable(_Table):
    """Streams of frames with their counts and latencies."""

    def __init__(self, feed: Feed) -> None:
        columns = {
            "name": ("stream", _text(), 150),
            "state": ("state", HTMLTemplateFormatter(template=_STATUS), 70),
            "read": ("frames read", _number(), 75),
            "waiting": ("waiting", _number(), 60),
            "running": ("running", _number(), 60),
            "done": ("done", _number(), 60),
            "rate": ("frames/s", _number("0,0.0"), 65),
            "p50": ("p50 ms", _number("0,0.0"), 65),
            "p99": ("p99 ms", _number("0,0.0"), 65),
            "late": ("late", _number(), 50),
            "dropped": ("dropped", _number(), 60),
            "failed": ("failed", _number(), 55),
        }
        super().__init__("Streams", columns, 140)

    def update(self, feed: Feed) -> None:
        """Show all streams, the newest first."""
        streams = feed.facts.streams
        rows = [self._row(each, feed.facts.time) for each in streams]
        self.show(rows, "" if streams else "None.")

    @staticmethod
    def _row(stream: Mapping[str, Any], now: float) -> dict[str, Any]:
        state = stream_state(stream, now)
        # The last news of a stream may be older than its end.
        levels = {"waiting": 0, "running": 0} if state == "ended" else {}
        return {
            **stream,
            **levels,
            "name": printable(stream["stream"]),
            "state": state,
            "p50": _milliseconds(stream["p50"]),
            "p99": _milliseconds(stream["p99"]),
            "dropped": stream["dropped_late"] + stream["dropped_for_newer"],
        }


def _milliseconds(seconds: float | None) -> float:
    return math.nan if seconds is None else 1e3 * seconds


class FailureTable(_Table):
    """Tasks that failed for good, and dead letters of streams."""

    def __init__(self, feed: Feed) -> None:
        columns = {
            "stage": ("stage or stream", _named(), 160),
            "key": ("key or frame", _text(), 170),
            "worker": ("worker", _text(), 150),
            "error": ("error", _text(), 360),
        }
        super().__init__("Failed for good", columns, 160)

    def update(self, feed: Feed) -> None:
        """Show tasks that failed, the newest first, and the last frames of streams that did."""
        letters = [
            {
                "stage": printable(stream["stream"]),
                "key": f"frame {letter['frame']:,}",
                "error": printable(f"{letter['error']}: {letter['cause']}"),
                "colour": colour_of(stream["stream"]),
            }
            for stream in feed.facts.streams
            for letter in reversed(stream["letters"])
        ]
        tasks = [
            {
                "stage": printable(each.stage),
                "key": printable(each.key),
                "worker": each.worker,
                "error": printable(each.error),
                "colour": colour_of(each.stage),
            }
            for each in feed.facts.failures
        ]
        self.show(tasks + letters, "" if tasks or letters else "None.")
