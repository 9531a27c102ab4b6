"""Shared parts of the benchmarks: machine facts, data sets read by path, statistics, tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import psutil

Array = npt.NDArray[Any]

_PACKAGES = ("dask", "distributed", "onnx", "onnxruntime", "numpy", "dask-onnx")
_RESAMPLES = 5000


def machine_facts() -> dict[str, Any]:
    """Return the hardware and versions that results depend on, without identifying the machine."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or None


def write_json(folder: Path, name: str, results: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine_facts(), **results}, indent=2) + "\n")
    return path


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, extremes and quartiles of some values."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    numbers = {"median": middle, "min": min(values), "max": max(values), "q1": low, "q3": high}
    return {name: round(float(number), 5) for name, number in numbers.items()}


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by the percentile bootstrap (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    samples = rng.choice(np.asarray(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def alternate(runners: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round; each round shuffles their order."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            seconds[name].append(timed(runners[name]))
            print(number, name, round(seconds[name][-1], 2), flush=True)
    return seconds


def against(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, Any]]:
    """Return each contestant's seconds, and its speed as a share of `base`'s in the same round."""
    return {
        name: {
            "seconds": spread(values),
            f"of_{base.replace(' ', '_')}": median_interval(
                [a / b for a, b in zip(seconds[base], values, strict=True)]
            ),
        }
        for name, values in seconds.items()
    }


def print_against_limit(title: str, unit: str, count: int, found: Mapping[str, Any]) -> None:
    """Print a line for each contestant of `against(..., "limit")`."""
    print_table(
        title,
        ["", "seconds", f"{unit}/s", "of the limit (95 %)"],
        [
            [
                name,
                f"{each['seconds']['median']:.2f}",
                f"{count / each['seconds']['median']:,.0f}",
                "{:.3f} ({:.3f}-{:.3f})".format(*each["of_limit"]),
            ]
            for name, each in found.items()
        ],
    )


def read_rows(path: str, start: int, stop: int) -> Array:
    rows: Array = np.load(path, mmap_mode="r")[start:stop]
    return rows


def read_block(path: str, block_info: Any = None) -> Array:
    """Read one block of an .npy file inside a task of `map_blocks`."""
    start, stop = block_info[None]["array-location"][0]
    return read_rows(path, start, stop)


def file_array(path: str, chunk: int) -> da.Array:
    """Return a lazy array over an .npy file that is read by path inside the tasks."""
    mapped = np.load(path, mmap_mode="r")
    rows = mapped.shape[0]
    sizes = tuple(min(chunk, rows - start) for start in range(0, rows, chunk))
    chunks = (sizes, *((size,) for size in mapped.shape[1:]))
    meta = np.empty((0,) * mapped.ndim, mapped.dtype)
    array: da.Array = da.map_blocks(read_block, path, chunks=chunks, dtype=mapped.dtype, meta=meta)
    return array


def row_maximum(block: Array) -> Array:
    """Return float32, shape (rows,): small, so that transferring results takes no time."""
    return block.reshape(len(block), -1).max(axis=1)


def reduced(array: da.Array) -> da.Array:
    """Return the maximum of each row, computed by a task that fuses with the one before."""
    axes = tuple(range(1, array.ndim))
    result: da.Array = array.map_blocks(
        row_maximum, drop_axis=axes, dtype=np.float32, meta=np.empty((0,), np.float32)
    )
    return result


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))
