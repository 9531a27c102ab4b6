"""The sessions of this process. The only module that imports onnxruntime, and only when it must."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx

from dask_onnx.analysis.shapes import OperatorSchema
from dask_onnx.core import config
from dask_onnx.core.errors import RunError, StageError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.cores import task_threads
from dask_onnx.runtime.extended_types import is_foreign, run_with_values

if TYPE_CHECKING:
    import onnxruntime

_ERROR = 3
"""ORT's severity: below it are warnings that a user can do nothing about."""

_FATAL = 4

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

SessionKey = tuple[str, SessionSpec]
"""Stage token and every option that changes what runs."""
Build = Callable[[], "Runnable"]


@dataclass(slots=True)
class Session:
    """An ORT session with what the cache wants to know of it."""

    inference: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    lease: Any = None
    """Keeps the store from evicting what is mapped here, for as long as the session lives."""
    run_options: onnxruntime.RunOptions | None = None
    has_foreign_types: bool = False
    """Some input or output has a type that numpy knows through ml_dtypes only."""

    def run(self, arrays: list[Any]) -> list[Any]:
        """Run once; `arrays` in the order of `inputs`, results in the order of `outputs`."""
        feeds = dict(zip(self.inputs, arrays, strict=True))
        if self.has_foreign_types:
            return _run_foreign(self, feeds)
        results: list[Any] = self.inference.run(self.outputs, feeds, self.run_options)
        return results


def build_session(
    proto: bytes,
    blobs: Path,
    spec: SessionSpec,
    *,
    weight_bytes: int,
    label: str,
    saved: Path | None = None,
) -> Session:
    """Make a session of a stage's proto, its weights mapped from the folder `blobs`.

    Parameters
    ----------
    saved : Path, optional
        What `save_session` made of the same stage on this host: is loaded in its place.

    Raises
    ------
    StageError
        ORT cannot run the stage, or a provider is not there.
    """
    import onnxruntime

    absent = [name for name in spec.providers if name not in onnxruntime.get_available_providers()]
    if absent:
        raise StageError(
            f"stage {label} wants {', '.join(absent)}; this worker's onnxruntime has "
            f"{', '.join(onnxruntime.get_available_providers())}",
            "install the onnxruntime build that has it on every worker, or drop the provider",
        )
    options = _options(spec)
    if saved is None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(blobs))
        inference = _create(proto, options, spec, label)
    else:  # is optimised already
        options.graph_optimization_level = _levels()["disable"]
        inference = _create(str(saved), options, spec, label)
    return _session(inference, spec, weight_bytes)


def _session(
    inference: onnxruntime.InferenceSession, spec: SessionSpec, weight_bytes: int
) -> Session:
    return Session(
        inference,
        tuple(value.name for value in inference.get_inputs()),
        tuple(value.name for value in inference.get_outputs()),
        weight_bytes,
        run_options=_run_options(spec),
        has_foreign_types=any(
            is_foreign(value.type) for value in (*inference.get_inputs(), *inference.get_outputs())
        ),
    )


def _run_foreign(session: Session, feeds: Mapping[str, Any]) -> list[Any]:
    from onnxruntime import OrtValue

    return run_with_values(session.inference, OrtValue, session.outputs, feeds, session.run_options)


def has_onnxruntime() -> bool:
    """Whether ORT is installed here; imports nothing."""
    return importlib.util.find_spec("onnxruntime") is not None


@functools.cache
def _kernel_versions() -> Mapping[tuple[str, str], list[tuple[int, int]]]:
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            found.setdefault((kernel.domain, kernel.op_name), []).append(kernel.version_range)
    return found


def has_kernel(domain: str, op_type: str, version: int) -> bool:
    """Whether ORT lists a kernel for the CPU, whatever the types and attributes."""
    ranges = _kernel_versions().get((domain, op_type), [])
    return any(low <= version <= high for low, high in ranges)


def why_not_built(model: onnx.ModelProto, libraries: Sequence[str]) -> str | None:
    """What ORT says against a model without weights; None if it builds a session of it."""
    options = _options(SessionSpec(intra_op_num_threads=1, custom_op_libraries=tuple(libraries)))
    options.log_severity_level = _FATAL  # what ORT says against it is the answer, not news
    try:
        _create(model.SerializeToString(), options, SessionSpec(), "probe")
    except StageError as error:
        return error.cause.partition(": ")[2].partition("[ONNXRuntimeError] : ")[2]
    return None


def save_session(
    proto: bytes, blobs: Path, spec: SessionSpec, path: Path, weights_name: str
) -> None:
    """Write a stage as ORT would run it here, its weights packed for this CPU, beside each other.

    Raises
    ------
    StageError
        ORT cannot run the stage, or cannot write it.
    """
    options = _options(spec)
    options.optimized_model_filepath = str(path)
    prefix = "session.optimized_model_external_initializers"
    for name, value in (
        (_WEIGHTS_FOLDER, str(blobs)),
        (f"{prefix}_file_name", weights_name),
        (f"{prefix}_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    _create(proto, options, spec, path.name)


def profiling_session(proto: bytes, blobs: Path, spec: SessionSpec, prefix: Path) -> Session:
    """A session of the graph as it is written, which notes what each of its nodes takes; what
    ``inference.end_profiling()`` returns is the path of the notes."""
    options = _options(spec)
    options.graph_optimization_level = _levels()["disable"]
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(blobs))
    inference = _create(proto, options, spec, "the whole model")
    return _session(inference, spec, 0)


def _options(spec: SessionSpec) -> onnxruntime.SessionOptions:
    import onnxruntime

    _prepare_process()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERROR
    options.graph_optimization_level = _levels()[spec.optimization]
    options.enable_mem_pattern = spec.memory_pattern
    # One arena for all sessions of the process: the stages of a model run one after the other,
    # and each would keep its own peak otherwise.
    options.add_session_config_entry("session.use_env_allocators", "1")
    if config.get("session.shared-pool"):
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = task_threads(spec.intra_op_num_threads)
        options.inter_op_num_threads = 1
        # Threads that wait busily for work take it from the other sessions' threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in dict(spec.config).items():
        options.add_session_config_entry(name, value)
    for library in spec.custom_op_libraries:
        _register(options, library)
    return options


def _register(options: onnxruntime.SessionOptions, library: str) -> None:
    try:
        options.register_custom_ops_library(library)
    except Exception as error:  # ORT's own types, none of which pickles
        raise StageError(
            f"the custom-operator library {library} cannot be loaded here: {_one_line(error)}",
            "put it at the same path on every worker, built for this onnxruntime and CPU",
        ) from None


_process_lock = threading.Lock()
_process_is_prepared = False


def _prepare_process() -> None:
    """What all sessions of the process share, set once, before the first of them: an arena, and
    the pool of threads if that is asked for."""
    global _process_is_prepared
    import onnxruntime

    with _process_lock:
        if _process_is_prepared:
            return
        onnxruntime.set_default_logger_severity(_ERROR)
        if config.get("session.shared-pool"):
            onnxruntime.set_global_thread_pool_sizes(task_threads(None), 1)
        onnxruntime.create_and_register_allocator(
            onnxruntime.OrtMemoryInfo(
                "Cpu",
                onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
                0,
                onnxruntime.OrtMemType.DEFAULT,
            ),
            None,
        )
        _process_is_prepared = True


def _run_options(spec: SessionSpec) -> onnxruntime.RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    # What a run fails on is in the exception; the log of a worker need not have it too, a line for
    # each half in which a bad row is looked for.
    options.log_severity_level = _FATAL
    if spec.arena_shrinkage:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


_FATAL = 4


def _create(
    model: bytes | str, options: onnxruntime.SessionOptions, spec: SessionSpec, label: str
) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            model, sess_options=options, providers=list(spec.providers)
        )
    except Exception as error:  # ORT raises a dozen types of its own, none of which pickles
        raise StageError(
            f"stage {label} cannot be built by onnxruntime {onnxruntime.__version__}: "
            f"{_one_line(error)}",
            "run `dask-onnx inspect` on the model; onnx.checker may say more",
        ) from None


class Runnable(Protocol):
    """What runs a stage: a `Session`, or the reference evaluator's."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    lease: Any

    def run(self, arrays: list[Any]) -> list[Any]: ...


def run_session(
    session: Runnable, arrays: list[Any], label: str, names: Sequence[str]
) -> list[Any]:
    """Run a session; its errors become a RunError that names stage, inputs and shapes."""
    try:
        return session.run(arrays)
    except Exception as error:  # whatever ORT, the reference or a caller's kernel raises
        shapes = ", ".join(
            f"{name} {_shape_of(array)}" for name, array in zip(names, arrays, strict=True)
        )
        where = "onnxruntime" if isinstance(session, Session) else "its Python kernels"
        raise RunError(
            f"stage {label} failed in {where} on {shapes}: {type(error).__name__}: "
            f"{_one_line(error)}",
            "check the inputs against `model.inputs`; sizes inside the graph may constrain them",
        ) from None


def _shape_of(value: Any) -> Any:
    return value.shape if isinstance(value, np.ndarray) else type(value).__name__


def foreign_schemas() -> Mapping[tuple[str, str], OperatorSchema]:
    """The operators that ORT has and ONNX does not define, by domain and op type."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    schemas = {}
    for schema in state.get_all_operator_schema():
        if schema.domain in ("", "ai.onnx", "ai.onnx.ml"):
            continue
        kinds = [parameter.typeStr for parameter in schema.inputs]
        schemas[schema.domain, schema.name] = OperatorSchema(
            tuple(
                kinds.index(out.typeStr) if out.typeStr in kinds else None for out in schema.outputs
            )
        )
    return schemas


def _levels() -> dict[str, Any]:
    import onnxruntime

    level = onnxruntime.GraphOptimizationLevel
    return {
        "disable": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(slots=True)
class SessionCache:
    """Sessions by key, least recently used first; two threads never build the same one twice."""

    sessions: OrderedDict[SessionKey, Runnable] = field(default_factory=OrderedDict)
    aliases: dict[SessionKey, SessionKey] = field(default_factory=dict)
    """Stages to the key of their session, which others that are alike share."""
    built: int = 0
    """Sessions built since the process started, for tests and reports."""
    _held: int = 0
    """Bytes of weights of all sessions."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _building: dict[SessionKey, threading.Lock] = field(default_factory=dict)

    def get(self, key: SessionKey, prepare: Callable[[], tuple[SessionKey, Build]]) -> Runnable:
        """The session of a stage.

        Parameters
        ----------
        key : of the stage
        prepare : function
            Called if the stage was not seen before: gives the key that all stages like it have,
            and a function that builds their session.
        """
        found = self._find(key)
        if found is not None:
            return found
        with self._only(key):
            found = self._find(key)
            if found is not None:
                return found
            shared, build = prepare()
            if shared == key:
                return self._insert(key, key, build())
            with self._only(shared):
                found = self._find(shared)
                return self._insert(key, shared, build() if found is None else found)

    @contextlib.contextmanager
    def _only(self, key: SessionKey) -> Iterator[None]:
        """One thread at a time for a key."""
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        with building:
            yield
        with self._lock:
            self._building.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self.sessions.clear()
            self.aliases.clear()
            self._held = 0

    def drop_oldest(self) -> bool:
        """Let the least recently used session go; whether there was one."""
        with self._lock:
            if not self.sessions:
                return False
            self._drop()
            return True

    def _drop(self) -> None:
        dropped, oldest = self.sessions.popitem(last=False)
        self._held -= oldest.weight_bytes
        for key in [key for key, shared in self.aliases.items() if shared == dropped]:
            del self.aliases[key]

    def _find(self, key: SessionKey) -> Runnable | None:
        with self._lock:
            shared = self.aliases.get(key, key)
            if shared in self.sessions:
                self.sessions.move_to_end(shared)
                return self.sessions[shared]
            return None

    def _insert(self, key: SessionKey, shared: SessionKey, session: Runnable) -> Runnable:
        limit = int(config.get("session.cache-bytes"))
        with self._lock:
            if shared != key:
                self.aliases[key] = shared
            if shared not in self.sessions:
                self.built += 1
                self.sessions[shared] = session
                self._held += session.weight_bytes
            while self._held > limit and len(self.sessions) > 1:
                self._drop()
        return session


CACHE = SessionCache()
"""This process's sessions: the one piece of state on a worker."""
