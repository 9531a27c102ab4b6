"""Trials of untrusted models in a subprocess, with limits of time and memory.

ONNX Runtime and onnx are native code: a damaged model may end the process, and a hostile one may
never come to an end. Such a model meets them first where that does no harm. The result is kept in
the host's store, so that each model is tried once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import onnx

from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.sample_inputs import sample_inputs
from dask_onnx.api.model import Model
from dask_onnx.core import config
from dask_onnx.core.errors import DaskOnnxError, ModelError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.subprocesses import SubprocessEndedError, run_in_subprocess
from dask_onnx.modelio.model_files import check_model_path, is_path, read_model_bytes
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.planning.stage_checks import check_operators
from dask_onnx.runtime.package_versions import installed_versions
from dask_onnx.store.trial_records import TrialRecord, read_trial, write_trial
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

_MODEL_COPIES = 4
"""Times that a model's file may be in memory: read, parsed, as a session, and in its buffers."""
_MOST_ELEMENTS = 10**7
"""Elements of the inputs of a trial run; a model whose inputs are larger is not run."""
_READ_BYTES = 2**20


def try_model(source: Any, kept: Sequence[tuple[str, str]] = ()) -> None:
    """Load, plan and run a model in a subprocess, unless this host has tried it before.

    Parameters
    ----------
    source : path, URL, bytes, ONNX's text or ModelProto
        The model. Neither bytes nor text are parsed in this process.
    kept : sequence of (str, str)
        Domain and type of the operators that the caller has kernels for; with any, the model is
        planned but not run.

    Raises
    ------
    ModelError
        The subprocess crashed or exceeded a limit, now or when it was tried before; ``reason`` says
        how it ended. Or the model cannot be loaded.
    """
    given: bytes | str
    if isinstance(source, onnx.ModelProto):
        given = source.SerializeToString()
    elif isinstance(source, str | os.PathLike):
        given = os.fspath(source)
    else:
        given = bytes(source)
    digest, size = _identity(given)
    digest = hashlib.sha256(repr((digest, sorted(kept), _versions())).encode()).hexdigest()
    store = Store()
    record = read_trial(store, digest)
    if record is None:
        record = _run_trial(given, tuple(kept), size)
        write_trial(store, digest, record)
    if record.refusal is not None:
        raise ModelError(
            f"the model is refused: {record.refusal}",
            "do not use this model; if it is yours and only slow or large, raise the limits, or "
            "load it with untrusted=False (on the command line: --trusted)",
            option="untrusted",
            reason=record.refusal,
            numbers=_limits(size),
            suggestions=[
                Suggestion("onnx.untrusted.seconds"),
                Suggestion("onnx.untrusted.memory-bytes"),
                Suggestion("untrusted", value=False),
            ],
        )


def _run_trial(given: bytes | str, kept: tuple[tuple[str, str], ...], size: int) -> TrialRecord:
    """Return the result of a trial, or raise the error of dask_onnx that it ended with."""
    limits = _limits(size)
    try:
        run_in_subprocess(
            _try,
            given,
            kept,
            limits["memory_bytes"],
            dask.config.get("onnx", {}),
            seconds=limits["seconds"],
        )
    except SubprocessEndedError as error:
        return TrialRecord(f"when it was tried, {error}")
    except MemoryError:
        return TrialRecord(
            f"when it was tried, it needed more than {limits['memory_bytes']:,} bytes"
        )
    return TrialRecord(None)


def _limits(size: int) -> dict[str, int]:
    memory = int(config.get("untrusted.memory-bytes")) + _MODEL_COPIES * size
    return {"seconds": int(config.get("untrusted.seconds")), "memory_bytes": memory}


def _identity(given: bytes | str) -> tuple[str, int]:
    """Return digest and bytes of a model's file."""
    if isinstance(given, str) and not is_path(given):
        given = given.encode(errors="surrogatepass")
    if isinstance(given, bytes):
        return hashlib.sha256(given).hexdigest(), len(given)
    if is_url(given):
        data, _ = read_model_bytes(given)
        return hashlib.sha256(data).hexdigest(), len(data)
    check_model_path(given)
    path = Path(given).expanduser().absolute()
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            found.update(part)
        # Other data beside it are another model.
        found.update(str(path.parent.resolve()).encode())
        return found.hexdigest(), file.tell()


def _versions() -> tuple[str | None, ...]:
    """Return the versions of the packages that a trial depends on."""
    installed = installed_versions()
    return importlib.metadata.version("onnx"), installed.onnxruntime, installed.dask_onnx


def _try(
    given: bytes | str,
    kept: tuple[tuple[str, str], ...],
    memory_bytes: int,
    settings: Mapping[str, Any],
) -> None:
    """Load, plan and run a model, in the subprocess."""
    # Not RLIMIT_AS, which would count mapped weights and the address space that threads reserve.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with dask.config.set({"onnx": settings, "scheduler": "synchronous"}):
        onnx_model = load_onnx(given, kept_functions=kept)
        model = Model(onnx_model)
        if kept:
            return
        check_operators(model.facts, model._facts.schemas)
        try:
            str(model.analysis)
            model.plan("whole")
            _run(model)
        except DaskOnnxError as error:
            # What is asked of the model later may succeed, or is refused then.
            log.info("the trial of a model ended with: %s", error)


def _run(model: Model) -> None:
    shapes, _ = assumed_shapes(model._facts.onnx, None)
    if sum(map(math.prod, shapes.values())) <= _MOST_ELEMENTS:
        model.predict(sample_inputs(model.facts, shapes, np.random.default_rng(0)))
