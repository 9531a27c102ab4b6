"""Preload of Dask's scheduler, which adds the plugins of dask_onnx when it starts.

    dask scheduler --preload dask_onnx.scheduler

The first prediction of a client adds them too. With the preload the page ``/onnx`` of the
dashboard and the numbers on ``/metrics`` are there from the beginning, and clients with
``onnx.auto-configure`` off find a scheduler that is configured.
"""

from __future__ import annotations

from typing import Any

from dask_onnx.cluster.configuration import scheduler_plugins


def dask_setup(scheduler: Any) -> None:
    """Add the plugins, which the scheduler then starts."""
    for plugin in scheduler_plugins():
        scheduler.add_plugin(plugin, name=plugin.name, idempotent=True)
