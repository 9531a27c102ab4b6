"""A profile as events of Chrome's trace format, which Perfetto and chrome://tracing show.

Workers are processes. Each has a thread for each of its task slots, with tasks as slices and their
phases inside; two for what it sends and receives; and one for the nodes of sampled stages, which
are drawn to scale inside the stage's longest task. Flows go from the task that made a value to its
transfer and on to the receiver. Counters show memory, CPU, network and tasks in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dask_onnx.diagnostics.profiling.run_profile import (
    CLIENT,
    NodeRecord,
    RunProfile,
    TaskRecord,
    TransferRecord,
)

Event = dict[str, Any]
_SENDING, _RECEIVING, _NODES = 1000, 2000, 3000
"""First numbers of the threads for transfers, and for nodes; task slots begin at 1."""
_SHORTEST_PHASE = 20e-6
"""Seconds of a phase below which it is left out: looking a session up takes a few microseconds."""


def trace_of(profile: RunProfile) -> list[Event]:
    """Return the events of a profile, in any order; times are in microseconds from its begin."""
    names = [worker.name for worker in profile.workers]
    others = {t.worker for t in profile.tasks} | {t.sender for t in profile.transfers}
    others |= {t.receiver for t in profile.transfers}
    names += sorted(others - {*names})
    numbers = {name: number for number, name in enumerate(names, 1)}
    made = _producers(profile.tasks)
    return [
        *_names_of(profile, numbers),
        *(event for task in profile.tasks for event in _task_events(task, numbers)),
        *_transfer_events(profile.transfers, numbers, made),
        *_node_events(profile, numbers),
        *_counters(profile, numbers),
        *_in_flight(profile.tasks),
    ]


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _slice(name: str, category: str, place: tuple[int, int], span: tuple[float, float]) -> Event:
    start, stop = span
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": place[0],
        "tid": place[1],
        "ts": _microseconds(start),
        "dur": _microseconds(max(stop - start, 0.0)),
    }


def _names_of(profile: RunProfile, numbers: Mapping[str, int]) -> Iterator[Event]:
    hosts = {worker.name: worker.host for worker in profile.workers}
    for name, number in numbers.items():
        shown = f"{name} ({hosts[name]})" if hosts.get(name) else name
        yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": shown}}
        lanes = {task.lane for task in profile.tasks if task.worker == name}
        threads = {lane + 1: f"tasks {lane}" for lane in lanes}
        for thread, text in sorted(threads.items()):
            yield {
                "ph": "M",
                "name": "thread_name",
                "pid": number,
                "tid": thread,
                "args": {"name": text},
            }


def _task_events(task: TaskRecord, numbers: Mapping[str, int]) -> Iterator[Event]:
    place = (numbers[task.worker], task.lane + 1)
    event = _slice(task.label, "task", place, (task.start, task.stop))
    event["args"] = {
        "key": task.key,
        "name": task.name,
        "stage": task.stage,
        "block": task.block,
        "category": task.category,
        "waited_seconds": task.waited,
        "rows": task.rows,
        "runs": task.runs,
        "input_bytes": task.input_bytes,
        "output_bytes": task.output_bytes,
        "error": task.error,
    }
    yield event
    for phase in task.phases:
        if phase.seconds >= _SHORTEST_PHASE and phase.name != "stage":
            span = (phase.start, phase.start + phase.seconds)
            yield _slice(phase.name, "phase", place, span)


def _producers(tasks: Iterable[TaskRecord]) -> Mapping[str, TaskRecord]:
    """Return the last task of each key, which made the value that is there."""
    return {task.key: task for task in tasks}


def _transfer_events(
    transfers: Sequence[TransferRecord],
    numbers: Mapping[str, int],
    made: Mapping[str, TaskRecord],
) -> Iterator[Event]:
    sending, receiving = _Lanes(_SENDING), _Lanes(_RECEIVING)
    for number, each in enumerate(transfers, 1):
        span = (each.start, each.stop)
        facts = {
            "link": each.link,
            "plain_bytes": each.plain_bytes,
            "wire_bytes": each.wire_bytes,
            "values": len(each.keys),
            "is_packed": each.is_packed,
            "encode_seconds": each.encode_seconds,
            "decode_seconds": each.decode_seconds,
        }
        name = each.stage or "values"
        source = (numbers[each.sender], sending.take(each.sender, span))
        target = (numbers[each.receiver], receiving.take(each.receiver, span))
        yield {**_slice(f"send {name}", "send", source, span), "args": facts}
        yield {**_slice(f"receive {name}", "transfer", target, span), "args": facts}
        yield _flow("s", number, source, each.start)
        yield _flow("f", number, target, each.stop)
        task = made.get(each.keys[0]) if each.keys else None
        if task is not None and task.worker == each.sender and task.stop <= each.start:
            place = (numbers[task.worker], task.lane + 1)
            yield _flow("s", len(transfers) + number, place, (task.start + task.stop) / 2)
            yield _flow("f", len(transfers) + number, source, each.start)


def _flow(step: str, number: int, place: tuple[int, int], time: float) -> Event:
    event: Event = {
        "name": "value",
        "cat": "flow",
        "ph": step,
        "id": number,
        "pid": place[0],
        "tid": place[1],
        "ts": _microseconds(time),
    }
    return {**event, "bp": "e"} if step == "f" else event


class _Lanes:
    """Numbers of threads for slices of a process that may overlap.

    Parameters
    ----------
    first : int
        Number of the first thread.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.ends: defaultdict[str, list[float]] = defaultdict(list)

    def take(self, process: str, span: tuple[float, float]) -> int:
        """Return a thread in which nothing else is drawn during a span."""
        ends = self.ends[process]
        for lane, end in enumerate(ends):
            if end <= span[0]:
                ends[lane] = span[1]
                return self.first + lane
        ends.append(span[1])
        return self.first + len(ends) - 1


def _node_events(profile: RunProfile, numbers: Mapping[str, int]) -> Iterator[Event]:
    """Yield the nodes of each sampled stage, one after the other, to the scale of one task."""
    nodes: defaultdict[str, list[NodeRecord]] = defaultdict(list)
    for node in profile.nodes:
        nodes[node.stage].append(node)
    for token, own in nodes.items():
        tasks = [task for task in profile.tasks if task.stage == token and not task.error]
        runs = [p for t in tasks for p in t.phases if p.name == "run" and p.stage in (token, "")]
        whole = sum(run.own_seconds for run in runs)
        if not tasks or not whole:
            continue
        longest = max(tasks, key=lambda task: task.seconds_of("run"))
        inside = [phase for phase in longest.phases if phase.name == "run"]
        start = inside[0].start if inside else longest.start
        scale = longest.seconds_of("run") / whole
        place = (numbers[longest.worker], _NODES + longest.lane)
        for node in own:
            stop = start + node.seconds * scale
            event = _slice(node.name, "node", place, (start, stop))
            event["args"] = {
                "stage": node.stage_label,
                "op_type": node.op_type,
                "seconds_of_all_runs": node.seconds,
                "flops_per_second": node.flops_per_second,
                "bytes_per_second": node.bytes_per_second,
                "roofline": node.roofline,
            }
            yield event
            start = stop


def _counters(profile: RunProfile, numbers: Mapping[str, int]) -> Iterator[Event]:
    for gauge in profile.gauges:
        values = {
            "memory": {"bytes": gauge.memory},
            "CPU": {"percent": gauge.cpu},
            "network": {"received": gauge.read_bps, "sent": gauge.write_bps},
        }
        if gauge.gpu or gauge.gpu_memory:
            values["GPU"] = {"percent": gauge.gpu, "bytes": gauge.gpu_memory}
        for name, numbers_of in values.items():
            yield {
                "ph": "C",
                "name": name,
                "pid": numbers.get(gauge.worker, 0),
                "ts": _microseconds(gauge.time),
                "args": numbers_of,
            }
    sent: defaultdict[str, int] = defaultdict(int)
    for each in sorted(profile.transfers, key=lambda transfer: transfer.stop):
        if each.receiver != CLIENT:
            sent[each.link] += each.wire_bytes or each.plain_bytes
            yield {
                "ph": "C",
                "name": f"bytes {each.link}",
                "pid": numbers[each.receiver],
                "ts": _microseconds(each.stop),
                "args": {"bytes": sent[each.link]},
            }


def _in_flight(tasks: Iterable[TaskRecord]) -> Iterator[Event]:
    """Yield how many blocks are between the start of their first and the end of their last task."""
    spans: dict[tuple[float, int], tuple[float, float]] = {}
    for task in tasks:
        if task.block is not None:
            block = task.submitted, task.block  # each request has a block 0
            start, stop = spans.get(block, (task.start, task.stop))
            spans[block] = min(start, task.start), max(stop, task.stop)
    steps = sorted(
        [(start, 1) for start, _ in spans.values()] + [(stop, -1) for _, stop in spans.values()]
    )
    count = 0
    for time, step in steps:
        count += step
        yield {
            "ph": "C",
            "name": "blocks in flight",
            "pid": 0,
            "ts": _microseconds(time),
            "args": {"blocks": count},
        }
