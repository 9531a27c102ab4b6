"""ONNX Runtime (ORT) sessions: built from a stage's proto, saved, profiled.

Beside `onnxruntime_internals` the only module that imports onnxruntime, and only when it must: a
client that plans for a cluster need not have it.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dask_onnx.core import config
from dask_onnx.core.errors import StageError
from dask_onnx.core.specs import CPU_PROVIDER, Provider, SessionSpec
from dask_onnx.runtime.cores import task_threads
from dask_onnx.runtime.extended_types import is_extended_type, run_with_ort_values
from dask_onnx.runtime.onnxruntime_internals import without_error_prefix
from dask_onnx.runtime.time_limits import stops_after

if TYPE_CHECKING:
    import onnxruntime

# ORT's severities. Below an error are warnings that a user can do nothing about.
_ERROR, _FATAL = 3, 4

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(slots=True)
class Session:
    """An ORT session, with the facts that the session cache needs."""

    inference: onnxruntime.InferenceSession
    """ORT's session."""
    inputs: tuple[str, ...]
    """Names of the inputs, in the order of `run`."""
    outputs: tuple[str, ...]
    """Names of the outputs, in the order of `run`."""
    weight_bytes: int
    """Bytes of the stage's weights."""
    lease: Any = None
    """Lease on the store that keeps the mapped weights from eviction."""
    run_options: onnxruntime.RunOptions | None = None
    """Options of every run without a limit in time."""
    has_extended_types: bool = False
    """True if some input or output has a type that numpy knows through ml_dtypes only."""
    spec: SessionSpec = field(default_factory=SessionSpec)
    """Options that it was built with."""

    def run(self, arrays: list[Any]) -> list[Any]:
        """Return the outputs for one array per input.

        Raises
        ------
        RunTimeoutError
            The run was ended at its limit in time.
        """
        feeds = dict(zip(self.inputs, arrays, strict=True))
        seconds = self.spec.max_run_seconds
        if seconds is None:
            return _run(self, feeds, self.run_options)
        options = _run_options(self.spec)  # of this run alone, since they are what ends it
        with stops_after(seconds, options):
            return _run(self, feeds, options)

    def run_bound(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Return outputs in ORT's own memory, which later runs can take as inputs without a copy.

        Parameters
        ----------
        feeds : mapping of str to ndarray or onnxruntime.OrtValue
            Inputs by the session's names.
        outputs : sequence of str
            The session's names of the outputs to return.

        Returns
        -------
        list of onnxruntime.OrtValue
            One for each of `outputs`, on the CPU.

        Raises
        ------
        RunTimeoutError
            The run was ended at its limit in time.
        """
        binding = self.inference.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        seconds = self.spec.max_run_seconds
        if seconds is None:
            self.inference.run_with_iobinding(binding, self.run_options)
        else:
            options = _run_options(self.spec)  # of this run alone, since they are what ends it
            with stops_after(seconds, options):
                self.inference.run_with_iobinding(binding, options)
        found: list[Any] = binding.get_outputs()
        return found

    def end_profiling(self) -> str:
        """Return the path of the profile of all runs, after the last one."""
        path: str = self.inference.end_profiling()
        return path


def build_session(
    proto: bytes,
    blobs: Path,
    spec: SessionSpec,
    *,
    weight_bytes: int,
    label: str,
    saved: Path | None = None,
) -> Session:
    """Build a session of a stage, its weights mapped from files.

    Parameters
    ----------
    proto : bytes
        Serialized ModelProto, its large initializers external.
    blobs : Path
        Folder of the external weights.
    spec : SessionSpec
        Options of the session.
    weight_bytes : int
        Bytes of the weights, for the session cache.
    label : str
        Name of the stage in errors.
    saved : Path, optional
        Model that `save_session` wrote for the same stage on this host; loaded instead of `proto`.

    Raises
    ------
    StageError
        ORT cannot run the stage, or a provider is missing.
    """
    import onnxruntime

    if missing := missing_providers(spec):
        available = ", ".join(onnxruntime.get_available_providers())
        raise StageError(
            f"stage {label} wants {', '.join(missing)}; this worker's onnxruntime has {available}",
            "install the onnxruntime build that has it on every worker, or drop the provider",
            stage=label,
            option="providers",
            reason=f"{', '.join(missing)} is not in this onnxruntime, which has {available}",
        )
    options = _options(spec)
    if saved is None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(blobs))
        inference = _create(proto, options, spec, label)
    else:
        # The saved model is optimized already.
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
        spec=spec,
        has_extended_types=any(
            is_extended_type(value.type)
            for value in (*inference.get_inputs(), *inference.get_outputs())
        ),
    )


def _run(session: Session, feeds: Mapping[str, Any], options: Any) -> list[Any]:
    if not session.has_extended_types:
        results: list[Any] = session.inference.run(session.outputs, feeds, options)
        return results
    from onnxruntime import OrtValue

    return run_with_ort_values(session.inference, OrtValue, session.outputs, feeds, options)


def has_onnxruntime() -> bool:
    """Return whether ORT is installed in this process's environment, without importing it."""
    return importlib.util.find_spec("onnxruntime") is not None


def missing_providers(spec: SessionSpec) -> list[str]:
    """Return the execution providers that this process's ORT does not have."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return [name for name in spec.provider_options if name not in available]


def session_build_error(
    model: onnx.ModelProto,
    libraries: Sequence[str],
    providers: Sequence[Provider] = (CPU_PROVIDER,),
) -> str | None:
    """Return ORT's message if it cannot build a session of a model; None if it can.

    Parameters
    ----------
    model : onnx.ModelProto
        Model without external weights.
    libraries : sequence of str
        Paths of custom-operator libraries.
    providers : sequence of Provider
        Execution providers, which this process's ORT has.
    """
    spec = SessionSpec(providers, intra_op_num_threads=1, custom_op_libraries=tuple(libraries))
    options = _options(spec)
    options.log_severity_level = _FATAL  # the message is the result here, and not for the log
    try:
        _create(model.SerializeToString(), options, spec, "probe")
    except StageError as error:
        return without_error_prefix(error.reason or "")
    return None


def save_session(
    proto: bytes, blobs: Path, spec: SessionSpec, path: Path, weights_name: str
) -> None:
    """Write a stage as ORT optimizes it on this host, with its weights packed for this CPU.

    Parameters
    ----------
    proto, blobs, spec
        As for `build_session`.
    path : Path
        File to write the optimized model to.
    weights_name : str
        Name of the file of packed weights, in the same folder.

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


def profiling_session(
    proto: bytes, blobs: Path, spec: SessionSpec, prefix: Path, *, optimized: bool = False
) -> Session:
    """Build a session that times every node: of the graph as it is written, or as ORT optimizes it.

    Parameters
    ----------
    proto, blobs
        As for `build_session`.
    spec : SessionSpec
        Options of the session; its optimization level counts only if `optimized`.
    prefix : Path
        Path of the profile without its ending; `Session.end_profiling` returns the whole path.

    Raises
    ------
    StageError
        ORT cannot run the graph.
    """
    options = _options(spec)
    if not optimized:
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
        # Spinning threads take cores from the other sessions' threads.
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
        reason = _one_line(error)
        raise StageError(
            f"the custom-operator library {library} cannot be loaded here: {reason}",
            "put it at the same path on every worker, built for this onnxruntime and CPU",
            option="custom_op_libraries",
            reason=reason,
        ) from None


_process_lock = threading.Lock()
_process_is_prepared = False


def _prepare_process() -> None:
    """Set up the arena, and the thread pool if asked for, that all sessions of the process share.

    ORT accepts both only once, before the first session.
    """
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
    # The exception has the reason of a failed run. In the log of a worker it would be a line for
    # each half in which a bad row is searched for.
    options.log_severity_level = _FATAL
    if spec.arena_shrinkage:
        arenas = ["cpu:0"]
        if "CUDAExecutionProvider" in spec.provider_options:  # not run on a device
            device = dict(spec.provider_options["CUDAExecutionProvider"]).get("device_id", "0")
            arenas.append(f"gpu:{device}")
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
    return options


def _create(
    model: bytes | str, options: onnxruntime.SessionOptions, spec: SessionSpec, label: str
) -> onnxruntime.InferenceSession:
    import onnxruntime

    providers = _provider_arguments(spec)
    try:
        found = onnxruntime.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # ORT raises a dozen types of its own, none of which pickles
        reason = _one_line(error)
        raise StageError(
            f"stage {label} cannot be built by onnxruntime {onnxruntime.__version__}: {reason}",
            "run `dask-onnx inspect` on the model; onnx.checker may say more",
            stage=label,
            reason=reason,
        ) from None
    # ORT goes on without a provider whose device or libraries it does not find.
    if unused := [name for name, _ in providers if name not in found.get_providers()]:
        raise StageError(
            f"stage {label} wants {', '.join(unused)}, which onnxruntime cannot use here, and "
            f"would run without; it uses {', '.join(found.get_providers())}",
            "check the device, its driver and the provider's libraries on this worker, or drop the "
            "provider",
            stage=label,
            option="providers",
            reason=f"onnxruntime cannot use {', '.join(unused)} here",
        )
    return found


def _provider_arguments(spec: SessionSpec) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers with their options, as ORT takes them.

    OpenVINO does not look at ORT's number of threads, and takes all cores by itself.
    """
    found = {name: dict(options) for name, options in spec.provider_options.items()}
    own = found.get("OpenVINOExecutionProvider")
    if own is not None and not {"num_of_threads", "load_config"} & set(own):
        own["num_of_threads"] = str(task_threads(spec.intra_op_num_threads))
    return list(found.items())


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
