"""Sessions that time every kernel as it runs: ONNX Runtime's by its profiler, and those in Python.

They stand in for the sessions of tasks while a profile times all nodes, and replay kept tasks.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dask_onnx.core.dask_internals import running_task_key
from dask_onnx.core.errors import StageError
from dask_onnx.core.meters import metered, recordings_of
from dask_onnx.core.process_caches import KeyedLocks
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.onnxruntime_internals import KernelCall, read_kernel_calls
from dask_onnx.runtime.reference import ReferenceSession
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_cache import Runnable
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import profiling_stage, stage_proto

_PROFILE = "profile"
InputShapes = tuple[tuple[int, ...] | None, ...]
"""Shape of each input of a run; None for one that is no array."""


class TimedSession:
    """A session of a stage that times its kernels.

    Parameters
    ----------
    stage : StageRef
        Stage, whose model has run in this process.
    spec : SessionSpec
        Options of the session.

    Raises
    ------
    StageError
        The session cannot be built.
    """

    def __init__(self, stage: StageRef, spec: SessionSpec) -> None:
        self.stage = stage
        self.folder = Path(tempfile.mkdtemp(prefix="dask-onnx-profile-"))
        try:
            self.session = profiling_stage(stage, spec, self.folder / _PROFILE)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.inputs, self.outputs = self.session.inputs, self.session.outputs
        self.weight_bytes, self.lease = self.session.weight_bytes, self.session.lease
        self.seconds = 0.0
        """Seconds of all runs that returned."""
        self.has_failed = False
        """True if some run raised."""
        self.shapes: defaultdict[int, list[InputShapes]] = defaultdict(list)
        """Shapes of the inputs of each run, by the operating system's identifier of its thread."""
        self._lock = threading.Lock()
        self._calls: list[KernelCall] = []
        """Calls of kernels in Python."""
        if isinstance(self.session, ReferenceSession):
            self._time_nodes(self.session.evaluator.rt_nodes_)

    @property
    def runs(self) -> int:
        """Number of all runs, of those that raised too."""
        return sum(map(len, self.shapes.values()))

    def run(self, arrays: list[Any]) -> list[Any]:
        """Return the outputs for one array per input."""
        shapes = tuple(getattr(each, "shape", None) for each in arrays)
        own = self.shapes[threading.get_native_id()]
        began = time.perf_counter()
        try:
            results = self.session.run(arrays)
        except BaseException:
            self.has_failed = True
            raise
        finally:
            own.append(shapes)
        with self._lock:
            self.seconds += time.perf_counter() - began
        return results

    def shapes_of(self, call: KernelCall) -> InputShapes | None:
        """Return the shapes of the inputs of the run that a call belongs to.

        Returns
        -------
        tuple or None
            None where that is not known: ORT does not count every run that raises.
        """
        own = self.shapes.get(call.thread, ())
        return own[call.run] if call.run < len(own) and not self.has_failed else None

    def finish(self) -> list[KernelCall]:
        """Return the calls of all runs; the session cannot run any more."""
        try:
            if isinstance(self.session, Session):
                return read_kernel_calls(Path(self.session.end_profiling()))
            return self._calls
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _time_nodes(self, nodes: Sequence[Any]) -> None:
        """Replace the method `run` of each of the evaluator's nodes by one that is timed."""
        for index, node in zip(self.stage.indices, nodes, strict=True):
            node.run = self._timed(node.run, index, node)

    def _timed(self, run: Callable[..., Any], index: int, node: Any) -> Callable[..., Any]:
        def timed(*inputs: Any, **options: Any) -> Any:
            began = time.perf_counter()
            outputs = run(*inputs, **options)
            seconds = time.perf_counter() - began
            moved = sum(int(getattr(value, "nbytes", 0)) for value in (*inputs, *outputs))
            thread = threading.get_native_id()
            place = (seconds, moved, thread, len(self.shapes[thread]))
            self._calls.append(KernelCall(index, node.op_type, str(node.op_type), *place))
            return outputs

        return timed


_inline: dict[tuple[str, str, str], TimedSession] = {}
"""Sessions of tasks while all nodes are timed, by profile, worker and stage token."""
_building = KeyedLocks()
_lock = threading.Lock()


def times_all_nodes() -> bool:
    """Return whether a profile times the nodes of all tasks, this thread's among them."""
    owner, _ = running_task_key()
    return any(each.nodes == "all" for each in recordings_of(owner))


def profiled_session(stage: StageRef, spec: SessionSpec) -> Runnable | None:
    """Return the session that stands in for that of a stage while all its nodes are timed.

    Returns
    -------
    Runnable or None
        None before the model has run in this process, and where no such session can be built.
    """
    owner, _ = running_task_key()
    recording = next(each for each in recordings_of(owner) if each.nodes == "all")
    key = (recording.profile, owner, stage.token)
    with _building.hold(key):
        found = _inline.get(key)
        if found is None and stage_proto(stage) is not None:
            try:
                with metered("session"):
                    found = TimedSession(stage, spec)
            except StageError:
                return None  # the task's own session says why
            with _lock:
                _inline[key] = found
        return found


def take_inline(profile: str, owner: str) -> list[TimedSession]:
    """Return the sessions that stood in for those of a worker's tasks, and forget them."""
    with _lock:
        keys = [key for key in _inline if key[:2] == (profile, owner)]
        return [_inline.pop(key) for key in keys]
