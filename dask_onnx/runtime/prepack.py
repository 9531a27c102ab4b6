"""Weights packed for this CPU's kernels, once per host, in files that all its processes map.

ORT packs the weights of a matrix product when a session is made, into memory of its own: as much
again as the weights, in each process. It can save what it packed beside the optimised model and
map it the next time. What is packed depends on the CPU and on ORT's version, and so does the name
of the folder.

Packing is done by a process of its own, which also measures whether the saved files load faster:
a worker near its memory limit must not hold the weights twice, not even for a moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask_onnx.core import config
from dask_onnx.core.errors import StageError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.subprocesses import run_in_subprocess
from dask_onnx.runtime.cores import cpu_identity, ort_version
from dask_onnx.runtime.session import build_session, save_session
from dask_onnx.store.integrity import digest_of, identity_of
from dask_onnx.store.weight_store import TEMPORARY, Store

log = logging.getLogger(__name__)

MODEL, WEIGHTS, NOTE = "model.onnx", "weights.bin", "note.json"
_AS_FAST = 1.25
"""Loading may take so much of the time that it takes unsaved: the memory that is shared counts."""
_TRY_AGAIN_SECONDS = 3600
"""After a failure, such as a disk that was full."""
_MIN_SHARE = 0.05
"""Less than this share of the weights packed is not worth the files."""


def prepacked(
    store: Store, model_token: str, stage_token: str, proto: bytes, spec: SessionSpec, bytes_: int
) -> Path | None:
    """The folder of a stage's packed weights, made if need be; None where it does not pay.

    Parameters
    ----------
    proto : bytes
        The stage, its weights external, named by blob keys.
    bytes_ : int
        Of the stage's weights.
    """
    least = config.get("session.prepack-min-bytes")
    if least is None or bytes_ < int(least) or spec.providers != ("CPUExecutionProvider",):
        return None
    name = _name(stage_token, spec)
    folder = store.root / "prepacked" / model_token / name
    if not _is_sound(folder):
        with store.lock(f"prepack-{name}"):
            if not _is_sound(folder):
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    _make(store, folder, proto, spec, bytes_)
                except OSError as error:  # such as a full disk: the stage runs without
                    log.warning("what was packed cannot be kept: %s", error)
    return folder if _note(folder).get("use") else None


def _name(stage_token: str, spec: SessionSpec) -> str:
    same = replace(spec, intra_op_num_threads=None)
    parts = (stage_token, same, ort_version(), cpu_identity())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _note(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return note


def _is_sound(folder: Path) -> bool:
    """Whether it was decided about, and the files are still those whose digests were taken."""
    note = _note(folder)
    if not note or time.time() > note.get("failed_at", math.inf) + _TRY_AGAIN_SECONDS:
        return False
    for name, (identity, digest) in note["files"].items():
        path = folder / name
        if not path.is_file():
            return False
        if list(identity_of(path)) != identity and digest_of(path) != digest:
            log.warning("%s is not what its digest says and is made anew", path)
            return False
    return True


def _make(store: Store, folder: Path, proto: bytes, spec: SessionSpec, bytes_: int) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as work:
        temporary = Path(work) / "made"
        temporary.mkdir(mode=0o700)
        note = _pack_elsewhere(temporary, store.blobs, proto, spec)
        if "reason" not in note:
            share = ((temporary / WEIGHTS).stat().st_size - bytes_) / bytes_
            note["packed_share"] = round(share, 3)
            if share < _MIN_SHARE:
                note["reason"] = "the kernels of this model pack next to nothing"
            elif note["saved_seconds"] > _AS_FAST * note["plain_seconds"]:
                note["reason"] = "loading what was saved is slower than packing anew"
        note["use"] = "reason" not in note
        if not note["use"]:
            (temporary / WEIGHTS).unlink(missing_ok=True)
            (temporary / MODEL).unlink(missing_ok=True)
        temporary.rename(folder)
    files = [folder / name for name in (MODEL, WEIGHTS) if (folder / name).is_file()]
    note["files"] = {path.name: (identity_of(path), digest_of(path)) for path in files}
    (folder / NOTE).write_text(json.dumps(note))
    log.info("packed weights of %s: %s", folder.name, note)


def _pack_elsewhere(folder: Path, blobs: Path, proto: bytes, spec: SessionSpec) -> dict[str, Any]:
    """Have another process pack; what it measured, or {"reason": why not}."""
    try:
        return dict(run_in_subprocess(pack, folder, blobs, proto, spec))
    except (RuntimeError, StageError) as error:
        return {"reason": f"packing failed: {error}", "failed_at": time.time()}


def pack(folder: Path, blobs: Path, proto: bytes, spec: SessionSpec) -> dict[str, float]:
    """Save a stage with its weights packed into `folder`; seconds to load it unsaved and saved."""
    spec = replace(spec, intra_op_num_threads=1)

    def seconds(saved: Path | None) -> float:
        began = time.perf_counter()
        build_session(proto, blobs, spec, weight_bytes=0, label="", saved=saved)
        return time.perf_counter() - began

    seconds(None)  # reads the weights into the page cache
    plain = min(seconds(None) for _ in range(2))
    save_session(proto, blobs, spec, folder / MODEL, WEIGHTS)
    saved = min(seconds(folder / MODEL) for _ in range(2))
    return {"plain_seconds": round(plain, 4), "saved_seconds": round(saved, 4)}
