"""The record of a profile: what ran, where and when. Pure data.

All times are seconds since the profile began, on one clock: that of the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

THIS_PROCESS = "this process"
"""Name of the worker that stands for the process of the caller."""
CLIENT = "client"
"""Name of the receiver of results that were gathered."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A process that ran tasks."""

    name: str
    """Address; `THIS_PROCESS` where Dask's local schedulers ran them."""
    host: str
    """Name of the host."""
    threads: int
    """Tasks that it runs at a time."""
    memory_limit: int | None
    """Bytes; None if there is no limit."""
    joined: float
    """Time at which it joined, at least 0."""
    left: float
    """Time at which it left, at most that of the end."""
    clock_offset: float = 0.0
    """Seconds by which its own clock was ahead; taken out of all times."""
    clock_error: float = 0.0
    """Largest error of the offset, in seconds."""
    peak_bytes: int = 0
    """Largest resident bytes of the process."""
    projected_bytes: int | None = None
    """The same as its plans project; None where no plan was made here."""
    flops_per_second: float = 0.0
    """Operations per second that one thread of this host reaches; 0 if not measured."""
    bytes_per_second: float = 0.0
    """Bytes per second that one thread of this host reads and writes; 0 if not measured."""
    gpu: str = ""
    """Name of its GPU."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage that ran."""

    token: str
    label: str
    """Name in the dashboard."""
    model: str
    """Token of the model."""
    kernel: str
    """Kernel that runs it."""
    nodes: int
    """Number of its nodes."""
    threads: int = 1
    """Threads that a run could use."""
    predicted_seconds: float | None = None
    """Seconds of all its runs as predicted for the shapes that ran; None without a sample."""
    sampled_share: float = 0.0
    """Share of its rows whose nodes were timed, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a task."""

    name: str
    """"stage" for the function that runs a stage, with "convert", "session", "weights" and "run"
    inside it; "read" and "write"."""
    start: float
    seconds: float
    """From begin to end."""
    own_seconds: float
    """Without other phases inside it."""
    stage: str = ""
    """Token of the stage; empty outside stages."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One attempt at a task."""

    key: str
    name: str
    """Prefix of the key, by which dashboards show it."""
    stage: str
    """Token of the stage; empty for other tasks."""
    label: str
    """Label of the stage; `name` for other tasks."""
    block: int | None
    """Number of the block of the input."""
    worker: str
    lane: int
    """Thread slot of the worker, from 0."""
    submitted: float
    """Arrival of its graph."""
    ready: float
    """End of the last task that it depends on."""
    assigned: float
    """Choice of the worker."""
    start: float
    """Call of its function."""
    stop: float
    """Return of its function; the end of the profile if it was still running."""
    phases: tuple[Phase, ...] = ()
    rows: int | None = None
    runs: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    category: str = "other"
    """"model", "reading", "writing" or "other"."""
    error: str = ""
    """Class of the exception, "lost" where the worker was, or "cancelled" where nobody wanted the
    result any more; empty if it returned."""

    @property
    def seconds(self) -> float:
        """Seconds that it ran."""
        return self.stop - self.start

    @property
    def waited(self) -> float:
        """Seconds from the end of the last task that it depends on to its start."""
        return max(self.start - self.ready, 0.0)

    def seconds_of(self, phase: str) -> float:
        """Return the seconds of a phase without others inside it."""
        return sum(each.own_seconds for each in self.phases if each.name == phase)


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """Values that went from one worker to another, or to the client, in one message."""

    sender: str
    receiver: str
    """Address of a worker, or `CLIENT`."""
    start: float
    stop: float
    plain_bytes: int
    """Bytes of the values in memory."""
    wire_bytes: int
    """Bytes that were sent; 0 if not known."""
    keys: tuple[str, ...]
    """Keys of the tasks whose results they are."""
    stage: str
    """Label of the stage, or name of the task, that made the first of them."""
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    is_packed: bool = False
    """True if values were encoded to take fewer bytes."""

    @property
    def seconds(self) -> float:
        """Seconds from the question for the values to their arrival."""
        return self.stop - self.start

    @property
    def link(self) -> str:
        """Sender and receiver as one text."""
        return f"{self.sender} -> {self.receiver}"

    @property
    def bytes_per_second(self) -> float:
        """Bytes over the link per second; those in memory where the others are not known."""
        return (self.wire_bytes or self.plain_bytes) / self.seconds if self.seconds > 0 else 0.0

    @property
    def ratio(self) -> float:
        """Bytes in memory, divided by those sent; 1 where these are not known."""
        return self.plain_bytes / self.wire_bytes if self.wire_bytes else 1.0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A kernel inside a stage, on the worker that ran the sample."""

    stage: str
    """Token of the stage."""
    stage_label: str
    worker: str
    name: str
    """Name of the model's node; ONNX Runtime's own for a node that it has added."""
    op_type: str
    """Operator as it ran, such as "FusedConv"."""
    calls: int
    """Calls in the sample."""
    seconds: float
    """Seconds of all runs of the stage, scaled from the sample."""
    sampled_seconds: float
    """Seconds of the calls in the sample."""
    flops: int
    """Operations of the calls in the sample; 0 if not known."""
    moved_bytes: int
    """Bytes that these calls read and wrote."""
    roofline: float
    """Share, from 0 to 1, of what the host can do by arithmetic or by memory, whichever is nearer
    to its limit; 0 if the host was not measured."""
    error: float | None = None
    """Standard error of `seconds`, relative to them; None where there were too few calls."""

    @property
    def flops_per_second(self) -> float:
        """Operations per second."""
        return self.flops / self.sampled_seconds if self.sampled_seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes read and written per second."""
        return self.moved_bytes / self.sampled_seconds if self.sampled_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Gauge:
    """State of a worker's process and host at one time."""

    worker: str
    time: float
    cpu: float
    """Percent; 100 is one core."""
    memory: float
    """Resident bytes."""
    read_bps: float
    """Bytes per second that the host's network received."""
    write_bps: float
    """Bytes per second that it sent."""
    gpu: float = 0.0
    """Percent."""
    gpu_memory: float = 0.0
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Growth of one of Dask's metrics on a worker during the profile."""

    worker: str
    context: str
    """"execute", "get-data", "gather-dep" or "memory-monitor"."""
    name: str
    """Prefix of the tasks; empty outside tasks."""
    label: str
    """Name of the metric; those of dask_onnx begin with ``onnx-``."""
    unit: str
    """"seconds", "bytes" or "count"."""
    value: float


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """Errors of one kind."""

    kind: str
    """Class of the exception."""
    stage: str
    """Label of the stage, or name of the task."""
    worker: str
    count: int
    message: str
    """First line of one of them."""


@dataclass(frozen=True, slots=True)
class StreamFrames:
    """Frames of a stream that the process of the profile has read, during the profile."""

    name: str
    start: float
    """Begin of the stream; 0 if that was before the profile."""
    stop: float
    """End of the stream, or that of the profile."""
    read: int
    """Frames that the source has given."""
    done: int
    """Frames with a result."""
    late: int
    """Frames with a result that came after their deadline."""
    dropped_late: int
    """Frames that were dropped after their deadline."""
    dropped_for_newer: int
    """Frames that were dropped for a newer one."""
    failed: int
    """Frames that failed, before they reached a worker too."""
    rate: float
    """Frames with a result per second of the stream."""
    p50: float | None
    """Median seconds from arrival to result of the last frames; None if there are none."""
    p90: float | None
    """Seconds that nine of ten of them did not exceed."""
    p99: float | None
    """Seconds that 99 of 100 did not exceed."""
    longest: float | None
    """Longest of all."""
    swaps: int
    """Times that the model was replaced."""
    letters: tuple[tuple[int, str, str], ...] = ()
    """Number, class of the exception and cause of the last frames that failed."""


@dataclass(frozen=True, slots=True)
class RunProfile:
    """Everything that was recorded of a run."""

    id: str
    started: float
    """Seconds since the epoch, by the scheduler's clock."""
    wall: float
    """Seconds from begin to end."""
    mode: str
    """Tasks whose nodes were timed: "sample", "all" or "none"."""
    scheduler: str
    """Address of the scheduler; "threads" for Dask's local ones."""
    workers: tuple[WorkerRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    transfers: tuple[TransferRecord, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    gauges: tuple[Gauge, ...] = ()
    digests: tuple[Digest, ...] = ()
    errors: tuple[ErrorRecord, ...] = ()
    streams: tuple[StreamFrames, ...] = ()
    others: tuple[tuple[str, float, float], ...] = ()
    """Worker, start and stop of each task of other clients that ended meanwhile."""
    edges: tuple[tuple[str, str], ...] = ()
    """Names of tasks, of which those of the second read results of the first."""
    notes: tuple[str, ...] = ()
    """Missing parts, with the reasons."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Tasks that all workers together ran at a time."""
        return sum(worker.threads for worker in self.workers)

    @property
    def slot_seconds(self) -> float:
        """Seconds of all slots together: wall x workers where none came or went."""
        return sum(w.threads * max(w.left - w.joined, 0.0) for w in self.workers)

    def stage(self, token: str) -> StageRecord | None:
        """Return a stage by its token."""
        return next((each for each in self.stages if each.token == token), None)
