"""Tables of a profile: rows by stage, node, type of operator, worker, link, block and more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args

from dask_onnx.cluster.profile_scheduler_plugin import CANCELLED
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.diagnostics.profiling.network_estimate import network_bytes
from dask_onnx.diagnostics.profiling.run_profile import (
    NodeRecord,
    RunProfile,
    TaskRecord,
    TransferRecord,
)
from dask_onnx.diagnostics.profiling.time_shares import time_shares

By = Literal[
    "stage",
    "node",
    "op_type",
    "worker",
    "link",
    "block",
    "task",
    "transfer",
    "error",
    "stream",
    "metric",
]
"""Unit of a table: a row for each stage, node, operator type, and so on."""
Row = dict[str, Any]
Item = TypeVar("Item")


def rows_of(profile: RunProfile, by: By) -> list[Row]:
    """Return the rows of a table, the most expensive first.

    Parameters
    ----------
    profile : RunProfile
    by : str
        What a row stands for; see `By`.

    Returns
    -------
    list of dict
        Column to value. Times are in seconds, sizes in bytes, shares from 0 to 1.

    Raises
    ------
    InputError
        There is no such table.
    """
    if by not in _TABLES:
        raise InputError(
            f"there is no table by {by!r}",
            f"give one of {', '.join(get_args(By))}",
            option="by",
            suggestions=[Suggestion("by", each) for each in get_args(By)],
        )
    return _TABLES[by](profile)


def _grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> Mapping[Any, list[Item]]:
    found: defaultdict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found


def _dearest_first(rows: Iterable[Row], column: str = "seconds") -> list[Row]:
    return sorted(rows, key=lambda row: -row[column])


def _median(values: Iterable[float]) -> float:
    found = sorted(values)
    return found[len(found) // 2] if found else 0.0


def _stage_rows(profile: RunProfile) -> list[Row]:
    """Return a row for each stage, and for each name of other tasks."""
    rows = []
    for (token, label), tasks in _grouped(profile.tasks, lambda t: (t.stage, t.label)).items():
        stage = profile.stage(token)
        sent = [t for t in profile.transfers if t.stage == label]
        runs = sum(task.runs for task in tasks)
        run_seconds = sum(task.seconds_of("run") for task in tasks)
        row: Row = {
            "stage": label,
            "seconds": sum(task.seconds for task in tasks),
            "tasks": len(tasks),
            "rows": sum(task.rows or 0 for task in tasks),
            "runs": runs,
            "waited": sum(task.waited for task in tasks),
            "run": run_seconds,
            "session": sum(t.seconds_of("session") + t.seconds_of("weights") for t in tasks),
            "convert": sum(task.seconds_of("convert") for task in tasks),
            "read": sum(task.seconds_of("read") for task in tasks),
            "write": sum(task.seconds_of("write") for task in tasks),
            "median_task": _median(task.seconds for task in tasks),
            "predicted_run": None if stage is None else stage.predicted_seconds,
            "sampled_share": 0.0 if stage is None else stage.sampled_share,
            "input_bytes": sum(task.input_bytes for task in tasks),
            "output_bytes": sum(task.output_bytes for task in tasks),
            "sent_bytes": sum(t.wire_bytes or t.plain_bytes for t in sent),
            "sent_seconds": sum(t.seconds for t in sent),
            "encode": sum(t.encode_seconds for t in sent),
            "decode": sum(t.decode_seconds for t in sent),
            "packed_ratio": _ratio(sent),
            "workers": len({task.worker for task in tasks}),
            "errors": sum(task.error not in ("", CANCELLED) for task in tasks),
            "cancelled": sum(task.error == CANCELLED for task in tasks),
            "kernel": "" if stage is None else stage.kernel,
            "token": token,
        }
        rows.append(row)
    return _dearest_first(rows)


def _ratio(transfers: Iterable[TransferRecord]) -> float:
    known = [each for each in transfers if each.wire_bytes]
    wire = sum(each.wire_bytes for each in known)
    return sum(each.plain_bytes for each in known) / wire if wire else 1.0


def _node_row(node: NodeRecord, whole: float) -> Row:
    return {
        "stage": node.stage_label,
        "node": node.name,
        "op_type": node.op_type,
        "seconds": node.seconds,
        "share": node.seconds / whole if whole else 0.0,
        "calls": node.calls,
        "sampled_seconds": node.sampled_seconds,
        "flops_per_second": node.flops_per_second,
        "bytes_per_second": node.bytes_per_second,
        "roofline": node.roofline,
        "worker": node.worker,
    }


def _node_rows(profile: RunProfile) -> list[Row]:
    whole = sum(node.seconds for node in profile.nodes)
    return _dearest_first(_node_row(node, whole) for node in profile.nodes)


def _op_type_rows(profile: RunProfile) -> list[Row]:
    whole = sum(node.seconds for node in profile.nodes)
    rows = []
    for op_type, nodes in _grouped(profile.nodes, lambda node: node.op_type).items():
        sampled = sum(node.sampled_seconds for node in nodes)
        rows.append(
            {
                "op_type": op_type,
                "seconds": sum(node.seconds for node in nodes),
                "share": sum(node.seconds for node in nodes) / whole if whole else 0.0,
                "nodes": len({(node.stage, node.name) for node in nodes}),
                "calls": sum(node.calls for node in nodes),
                "flops_per_second": sum(n.flops for n in nodes) / sampled if sampled else 0.0,
                "bytes_per_second": (
                    sum(n.moved_bytes for n in nodes) / sampled if sampled else 0.0
                ),
            }
        )
    return _dearest_first(rows)


def _worker_rows(profile: RunProfile) -> list[Row]:
    shares = time_shares(profile).by_worker
    rows = []
    for worker in profile.workers:
        gauges = [gauge for gauge in profile.gauges if gauge.worker == worker.name]
        tasks = [task for task in profile.tasks if task.worker == worker.name]
        rows.append(
            {
                "worker": worker.name,
                "host": worker.host,
                "threads": worker.threads,
                "seconds": sum(task.seconds for task in tasks),
                "tasks": len(tasks),
                "rows": sum(task.rows or 0 for task in tasks),
                **shares.get(worker.name, {}),
                "spill": sum(
                    each.value
                    for each in profile.digests
                    if each.worker == worker.name
                    and each.unit == "seconds"
                    and each.label in ("disk-read", "disk-write")
                ),
                "cpu": sum(g.cpu for g in gauges) / len(gauges) if gauges else 0.0,
                "peak_bytes": worker.peak_bytes,
                "projected_bytes": worker.projected_bytes,
                "memory_limit": worker.memory_limit,
                "received_bytes": _moved(profile, receiver=worker.name),
                "sent_bytes": _moved(profile, sender=worker.name),
                "gpu": max((gauge.gpu for gauge in gauges), default=0.0),
                "clock_offset": worker.clock_offset,
            }
        )
    return _dearest_first(rows)


def _moved(profile: RunProfile, sender: str = "", receiver: str = "") -> int:
    return sum(
        each.wire_bytes or each.plain_bytes
        for each in profile.transfers
        if sender in ("", each.sender) and receiver in ("", each.receiver)
    )


def _link_rows(profile: RunProfile) -> list[Row]:
    """Return a row for each link.

    ``wire_bytes`` are those of Dask's messages; ``network_bytes`` estimates what an interface
    counts.
    """
    rows = []
    for (sender, receiver), own in _grouped(
        profile.transfers, lambda each: (each.sender, each.receiver)
    ).items():
        wire = sum(each.wire_bytes or each.plain_bytes for each in own)
        busy = _covered((each.start, each.stop) for each in own)
        rows.append(
            {
                "link": f"{sender} -> {receiver}",
                "sender": sender,
                "receiver": receiver,
                "seconds": sum(each.seconds for each in own),
                "busy_seconds": busy,
                "transfers": len(own),
                "plain_bytes": sum(each.plain_bytes for each in own),
                "wire_bytes": wire,
                "network_bytes": network_bytes(
                    wire, _moved(profile, receiver, sender), sender, receiver
                ),
                "ratio": _ratio(own),
                "packed": sum(each.is_packed for each in own),
                "bytes_per_second": wire / busy if busy else 0.0,
                "encode": sum(each.encode_seconds for each in own),
                "decode": sum(each.decode_seconds for each in own),
            }
        )
    return _dearest_first(rows)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that some spans cover together."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def _block_rows(profile: RunProfile) -> list[Row]:
    """Return a row for each block of each request; requests are numbered as they arrived."""
    numbers = {time: number for number, time in enumerate(sorted({*_arrivals(profile)}))}
    rows = []
    for (submitted, block), tasks in _grouped(
        profile.tasks, lambda task: (task.submitted, task.block)
    ).items():
        if block is None:
            continue
        start, stop = min(t.start for t in tasks), max(t.stop for t in tasks)
        rows.append(
            {
                "request": numbers[submitted],
                "block": block,
                "seconds": sum(task.seconds for task in tasks),
                "latency": stop - start,
                "tasks": len(tasks),
                "rows": max(task.rows or 0 for task in tasks),
                "waited": sum(task.waited for task in tasks),
                "start": start,
                "stop": stop,
            }
        )
    return _dearest_first(rows)


def _arrivals(profile: RunProfile) -> Iterator[float]:
    return (task.submitted for task in profile.tasks if task.block is not None)


def _task_row(task: TaskRecord) -> Row:
    phases = ("convert", "session", "weights", "run", "read", "write")
    return {
        "key": task.key,
        "name": task.name,
        "stage": task.label,
        "block": task.block,
        "worker": task.worker,
        "lane": task.lane,
        "start": task.start,
        "stop": task.stop,
        "seconds": task.seconds,
        "waited": task.waited,
        **{phase: task.seconds_of(phase) for phase in phases},
        "rows": task.rows,
        "runs": task.runs,
        "input_bytes": task.input_bytes,
        "output_bytes": task.output_bytes,
        "category": task.category,
        "error": task.error,
    }


def _task_rows(profile: RunProfile) -> list[Row]:
    return _dearest_first(map(_task_row, profile.tasks))


def _transfer_rows(profile: RunProfile) -> list[Row]:
    return _dearest_first(
        {
            "link": each.link,
            "stage": each.stage,
            "start": each.start,
            "stop": each.stop,
            "seconds": each.seconds,
            "plain_bytes": each.plain_bytes,
            "wire_bytes": each.wire_bytes,
            "ratio": each.ratio,
            "bytes_per_second": each.bytes_per_second,
            "packed": each.is_packed,
            "encode": each.encode_seconds,
            "decode": each.decode_seconds,
            "values": len(each.keys),
        }
        for each in profile.transfers
    )


def _error_rows(profile: RunProfile) -> list[Row]:
    rows = [
        {
            "kind": each.kind,
            "stage": each.stage,
            "worker": each.worker,
            "count": each.count,
            "message": each.message,
        }
        for each in profile.errors
    ]
    return _dearest_first(rows, "count")


def _stream_rows(profile: RunProfile) -> list[Row]:
    """Return a row for each stream; its dead letters by the last of them."""
    rows = []
    for each in profile.streams:
        row = {e.name: getattr(each, e.name) for e in fields(each) if e.name != "letters"}
        frame, kind, cause = each.letters[-1] if each.letters else (None, "", "")
        row |= {
            "stream": row.pop("name"),
            "seconds": each.stop - each.start,
            "dropped": each.dropped_late + each.dropped_for_newer,
            "last_failed": frame,
            "last_error": f"{kind}: {cause}" if kind else "",
        }
        rows.append(row)
    return _dearest_first(rows)


def _metric_rows(profile: RunProfile) -> list[Row]:
    rows = [
        {
            "worker": each.worker,
            "context": each.context,
            "name": each.name,
            "label": each.label,
            "unit": each.unit,
            "value": each.value,
        }
        for each in profile.digests
    ]
    return _dearest_first(rows, "value")


_TABLES: Mapping[str, Callable[[RunProfile], list[Row]]] = {
    "stage": _stage_rows,
    "node": _node_rows,
    "op_type": _op_type_rows,
    "worker": _worker_rows,
    "link": _link_rows,
    "block": _block_rows,
    "task": _task_rows,
    "transfer": _transfer_rows,
    "error": _error_rows,
    "stream": _stream_rows,
    "metric": _metric_rows,
}
