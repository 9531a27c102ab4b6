"""Weights packed for this CPU's kernels, once per host, in files that all its processes map.

ORT packs the weights of a matrix product when it builds a session, into memory of its own: as much
again as the weights, in each process. It can save the packed weights beside the optimized model
and map them the next time. They depend on the CPU and on ORT's version, and so does the name of
the folder.

A subprocess packs, and measures whether the saved files load faster: a worker near its memory
limit must not hold the weights twice, not even for a moment.
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
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.subprocesses import run_in_subprocess
from dask_onnx.runtime.cores import cpu_identity, ort_version
from dask_onnx.runtime.session import build_session, save_session
from dask_onnx.store.integrity import digest_of, identity_of
from dask_onnx.store.store_files import TEMPORARY
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

MODEL, WEIGHTS, NOTE = "model.onnx", "weights.bin", "note.json"
"""Names of the files in a folder of packed weights."""
_MAX_LOAD_RATIO = 1.25
"""Bound on the time to load saved weights, relative to packing anew: sharing memory is worth
more than a quarter of that time."""
_RETRY_SECONDS = 3600
"""Seconds until packing is tried again after a failure, such as a full disk."""
_MIN_PACKED_SHARE = 0.05
"""Share of the weights that must be packed for the files to be worth their space."""

_unsaved: BoundedCache[Path, str] = BoundedCache(
    "packed weights that were not saved", 1024, max_age_seconds=_RETRY_SECONDS
)
"""Folders that could not be written, even with a note that says so, to the error."""


def prepacked_folder(
    store: Store,
    model_token: str,
    stage_token: str,
    proto: bytes,
    spec: SessionSpec,
    weight_bytes: int,
) -> Path | None:
    """Return the folder of a stage's packed weights, packed now if they are missing.

    Parameters
    ----------
    store : Store
        Store of this host.
    model_token, stage_token : str
        Content digests, which name the folder.
    proto : bytes
        Serialized stage, its weights external and named by blob keys.
    spec : SessionSpec
        Options of the session.
    weight_bytes : int
        Bytes of the stage's weights.

    Returns
    -------
    Path or None
        None where packing does not pay: small weights, other devices, or a measurement says so.
    """
    min_bytes = config.get("session.prepack-min-bytes")
    if min_bytes is None or weight_bytes < int(min_bytes):
        return None
    if not spec.is_on_cpu:
        return None
    name = _name(stage_token, spec)
    folder = store.root / "prepacked" / model_token / name
    if not _is_sound(folder) and _unsaved.get(folder) is None:
        with store.lock(f"prepack-{name}"):
            if not _is_sound(folder):
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    _make(store, folder, proto, spec, weight_bytes)
                except OSError as error:  # such as a full disk: the stage runs without
                    _unsaved.put(folder, str(error))
                    log.warning("packed weights cannot be saved in %s: %s", folder, error)
    return folder if _note(folder).get("use") else None


def _name(stage_token: str, spec: SessionSpec) -> str:
    # Threads and time do not change what is packed.
    shared = replace(spec, intra_op_num_threads=None, max_run_seconds=None)
    parts = (stage_token, shared, ort_version(), cpu_identity())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _note(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return note


def _is_sound(folder: Path) -> bool:
    """Return whether a decision is recorded, and its files are those whose digests were taken."""
    note = _note(folder)
    if not note or time.time() > note.get("failed_at", math.inf) + _RETRY_SECONDS:
        return False
    for name, (identity, digest) in note["files"].items():
        path = folder / name
        if not path.is_file():
            return False
        if list(identity_of(path)) != identity and digest_of(path) != digest:
            log.warning("%s does not match its digest and is packed anew", path)
            return False
    return True


def _make(store: Store, folder: Path, proto: bytes, spec: SessionSpec, weight_bytes: int) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as work:
        temporary = Path(work) / "made"
        temporary.mkdir(mode=0o700)
        note = _pack_in_subprocess(temporary, store.blobs, proto, spec)
        if "reason" not in note:
            # ORT may have computed all that depends on the weights: then there is no such file.
            saved = temporary / WEIGHTS
            saved_bytes = saved.stat().st_size if saved.is_file() else 0
            share = (saved_bytes - weight_bytes) / weight_bytes
            note["packed_share"] = round(share, 3)
            if share < _MIN_PACKED_SHARE:
                note["reason"] = "the kernels of this model pack next to nothing"
            elif note["saved_seconds"] > _MAX_LOAD_RATIO * note["plain_seconds"]:
                note["reason"] = "loading saved weights is slower than packing anew"
        note["use"] = "reason" not in note
        if not note["use"]:
            (temporary / WEIGHTS).unlink(missing_ok=True)
            (temporary / MODEL).unlink(missing_ok=True)
        temporary.rename(folder)
    files = [folder / name for name in (MODEL, WEIGHTS) if (folder / name).is_file()]
    note["files"] = {path.name: (identity_of(path), digest_of(path)) for path in files}
    (folder / NOTE).write_text(json.dumps(note))
    log.info("packed weights of %s: %s", folder.name, note)


def _pack_in_subprocess(
    folder: Path, blobs: Path, proto: bytes, spec: SessionSpec
) -> dict[str, Any]:
    """Return the seconds that a subprocess measured, or ``{"reason": ...}`` if it failed."""
    try:
        return dict(run_in_subprocess(pack, folder, blobs, proto, spec))
    except (RuntimeError, StageError) as error:
        return {"reason": f"packing failed: {error}", "failed_at": time.time()}


def pack(folder: Path, blobs: Path, proto: bytes, spec: SessionSpec) -> dict[str, float]:
    """Save a stage with its weights packed, and time loading it without and with the saved files.

    Parameters
    ----------
    folder : Path
        Folder to write to.
    blobs : Path
        Folder of the external weights.
    proto : bytes
        Serialized stage.
    spec : SessionSpec
        Options of the session.

    Returns
    -------
    dict
        ``plain_seconds`` and ``saved_seconds``.
    """
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
