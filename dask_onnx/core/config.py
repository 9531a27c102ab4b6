"""The ``dask_onnx.*`` keys of ``dask.config``: each with its default and its unit."""

from __future__ import annotations

from typing import Any

import dask.config

DEFAULTS: dict[str, Any] = {
    # How often Dask repeats a task of ours that raised. Worker deaths are counted by Dask apart.
    "retries": 3,
    # What to do when a worker's dask_onnx or onnxruntime is not the planner's: "error" or "warn".
    "version-mismatch": "error",
    "store": {
        # Folder of protos and weights on each host; null is the user's cache folder.
        "directory": None,
        # What the folder may hold, in bytes; above it the least recently used models go, but none
        # that a live process has a session of.
        "max-bytes": 20 * 2**30,
    },
    "session": {
        # Weights that the sessions of one process may hold together, in bytes. The least recently
        # used session goes first; one that alone is larger is kept while it is the newest.
        "cache-bytes": 8 * 2**30,
        # Stages with so many bytes of weights have them packed for the CPU once per host, in files
        # that all processes map; null never does. Below it there is little to share or to save.
        "prepack-min-bytes": 16 * 2**20,
        # One pool of threads for all sessions of a process, rather than one each that sleeps when
        # it has no work. Faster where many sessions use several threads by turns; but ORT then
        # refuses every other session of the process that has threads of its own, so it is for
        # workers that run nothing else.
        "shared-pool": False,
    },
    "transfer": {
        # Pack what stages send to each other where that is predicted to be faster than sending it
        # as it is; never between processes of one host.
        "pack": True,
        # Bytes a second of the links between hosts, such as "12MB"; null measures them.
        "bandwidth": None,
    },
    "plan": {
        # What a stage of a `fused` plan should compute at least, in seconds: a hop between
        # processes costs some 6 ms, of which a stage should be a multiple.
        "min-seconds": 0.05,
        # Find out how fast this host's CPU is, once, when a plan first weighs what nodes take: some
        # tenths of a second; and, once for each client, what tasks cost on its cluster besides
        # their work: about a second. Otherwise plans go by what is common.
        "calibrate": True,
        # What to do, before a run, where a stage's weights and activations are projected not to fit
        # the workers: "error" or "warn". Activations are estimated from the graph.
        "memory-check": "error",
    },
}

dask.config.update_defaults({"dask_onnx": DEFAULTS})


def get(key: str) -> Any:
    """The value of ``dask_onnx.<key>`` in this process."""
    default: Any = DEFAULTS
    for part in key.split("."):
        default = default[part]
    # Dask's configuration may have lost the defaults: `dask.config.set`, used as a context before
    # this module was first imported, takes everything with it that came after.
    return dask.config.get(f"dask_onnx.{key}", default)
