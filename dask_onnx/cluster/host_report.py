"""Facts of one process and of its host that decide whether stages can run there, as plain values.

Each side of a cluster makes this report for itself; it has no types of this package, so that sides
with other versions of it can be compared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask.config

from dask_onnx.core import config
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.runtime.cores import available_cores
from dask_onnx.store.weight_store import Store


def host_report() -> dict[str, Any]:
    """Return what this process knows of its store, its cores and its configuration.

    Nothing is written, and no weights are read.

    Returns
    -------
    dict of str to object
        ``cores``; ``compression``, Dask's setting for values that are sent; ``retries``;
        ``unknown_keys`` of the configuration, without their values; ``store``, as `store_report`.
    """
    return {
        "cores": available_cores(),
        "compression": str(dask.config.get("distributed.comm.compression", None)),
        "version_mismatch": str(config.get("version-mismatch")),
        "unknown_keys": [str(key) for key in config.unknown()],
        "store": store_report(),
    }


def store_report() -> dict[str, Any]:
    """Return the folder of this host's store, its bytes, and the bytes that are free there.

    Returns
    -------
    dict of str to object
        ``folder``; ``used_bytes``, of all files; ``free_bytes`` of the file system for this user;
        ``max_bytes``, above which models are evicted; ``models``; ``error``, empty if the folder
        can be used.
    """
    try:
        root = Store().root
    except DaskOnnxError as error:
        return {"folder": str(config.get("store.directory") or ""), "error": str(error)}
    try:
        sizes = [path.lstat().st_size for path in root.rglob("*") if path.is_file()]
        free = shutil.disk_usage(_existing(root)).free
        models = len(list((root / "protos").glob("*.onnx")))
    except OSError as error:
        return {"folder": str(root), "error": f"{type(error).__name__}: {error}"}
    return {
        "folder": str(root),
        "used_bytes": sum(sizes),
        "free_bytes": free,
        "max_bytes": int(config.get("store.max-bytes")),
        "models": models,
        "error": "",
    }


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)
