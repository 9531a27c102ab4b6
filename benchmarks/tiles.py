"""Text detection on pages of up to 16384 x 16384 pixels: in tiles and as a whole.

    python benchmarks/tiles.py --assets .cache/assets --output benchmarks/results

Contestants, on the same page, which tasks read by path:

1. whole: one ORT session on all pixels, in a separate process with as many threads as cores
2. tiles of 512, 1024 and 2048: `dx.predict_tiled` on two worker processes of one thread
3. overlap by hand: tiles of 1024 that overlap by 128, each run independently and cut in the middle
   of the overlap, as sliced inference usually does; on the same workers

Reported are seconds, CPU seconds (of all workers), the peak memory of a process (of the larger
worker), also as a share of the whole's, and the largest and the mean difference of the text
probability from the whole's. The model reduces over all pixels in ten places (squeeze-and-excite),
which independent tiles cannot reproduce.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import onnxruntime
import psutil
from common import Array, print_table, write_json
from distributed import Client, LocalCluster
from imported_session import predict_block
from PIL import Image

import dask_onnx as dx

_OVERLAP = 128
_CHUNK = 1024
_ROWS_COMPARED = 512


def make_page(assets: Path, path: Path, size: int) -> None:
    """Write a page of text, repeated to fill uint8 (1, 3, size, size)."""
    with Image.open(assets / "page.png") as image:
        page = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    repeats = [-(-size // side) for side in page.shape[1:]]
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (1, 3, size, size))
    band = np.tile(page, (1, 1, repeats[1]))[:, :, :size]
    for start in range(0, size, band.shape[1]):
        stop = min(start + band.shape[1], size)
        out[0, :, start:stop] = band[:, : stop - start]
    out.flush()


def prepared(pixels: Array) -> Array:
    """Return pixels as PP-OCR input: float32 from -1 to 1."""
    out = pixels.astype(np.float32)
    out /= 127.5
    out -= 1
    return out


def read_crop(path: str, block_info: Any = None) -> Array:
    """Read one block of the page inside a task."""
    where = tuple(slice(*bounds) for bounds in block_info[None]["array-location"])
    return prepared(np.load(path, mmap_mode="r")[where])


def page_array(path: str, size: int) -> da.Array:
    sides = tuple(min(_CHUNK, size - start) for start in range(0, size, _CHUNK))
    return da.map_blocks(
        read_crop,
        path,
        chunks=((1,), (3,), sides, sides),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )


def write_crop(block: Array, path: str, block_info: Any = None) -> Array:
    """Write one block of the result to a file; return one number for Dask to keep."""
    where = tuple(slice(*bounds) for bounds in block_info[0]["array-location"])
    np.load(path, mmap_mode="r+")[where] = block
    return np.zeros((1,) * block.ndim, np.int8)


def written(result: da.Array, path: Path) -> da.Array:
    np.lib.format.open_memmap(path, "w+", np.float32, result.shape).flush()
    return result.map_blocks(
        write_crop,
        str(path),
        chunks=tuple((1,) * len(sizes) for sizes in result.chunks),
        dtype=np.int8,
        meta=np.empty((0,) * result.ndim, np.int8),
    )


def peak_bytes() -> int:
    """Return the peak resident bytes of this process."""
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def run_whole(connection: Connection, model: str, page: str, result: str, limit: int) -> None:
    """Run one session on all pixels in this process, limited to `limit` bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        began = time.perf_counter()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        pixels = prepared(np.load(page))
        (out,) = session.run(None, {session.get_inputs()[0].name: pixels})
        np.save(result, out)
        seconds = time.perf_counter() - began
        connection.send({"seconds": seconds, "cpu": cpu_seconds(), "peak": peak_bytes()})
    except Exception as error:  # ORT and numpy raise different types when memory is short
        connection.send({"refused": f"{type(error).__name__}: {error}"[:200]})


def measure_whole(model: str, page: Path, result: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    limit = int(psutil.virtual_memory().available * 0.9)
    arguments = (there, model, str(page), str(result), limit)
    process = context.Process(target=run_whole, args=arguments)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        found = {"refused": "the process was killed"}
    process.join()
    return found


def on_workers(make: Callable[[], da.Array], result: Path) -> dict[str, Any]:
    """Measure seconds and memory of a lazy result on two new workers of one thread."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        bare = max(client.run(peak_bytes).values())
        before = sum(client.run(cpu_seconds).values())
        began = time.perf_counter()
        lazy = written(make(), result)
        planned = time.perf_counter() - began
        lazy.compute()
        seconds = time.perf_counter() - began
        peak = max(client.run(peak_bytes).values())
        cpu = sum(client.run(cpu_seconds).values()) - before
    return {
        "seconds": seconds,
        "planning_seconds": planned,
        "cpu": cpu,
        "peak": peak,
        "bare": bare,
    }


def tiled(model: str, page: Path, size: int, tile: int) -> da.Array:
    lazy: da.Array = dx.predict_tiled(dx.load(model), page_array(str(page), size), tile=tile)
    return lazy


def by_hand(model: str, page: Path, size: int) -> da.Array:
    """Return independent tiles with half of the overlap on each side, which is cut off again."""
    half = _OVERLAP // 2
    depth = {0: 0, 1: 0, 2: half, 3: half}
    padded = da.overlap.overlap(page_array(str(page), size), depth, boundary="none")
    chunks = (padded.chunks[0], (1,), *padded.chunks[2:])
    found = padded.map_blocks(
        predict_block, model, 1, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, "f4")
    )
    return da.overlap.trim_overlap(found, depth, boundary="none")


def difference(whole: Path, other: Path) -> dict[str, float]:
    """Return the largest and the mean difference of two results, read in strips."""
    a, b = (np.load(path, mmap_mode="r") for path in (whole, other))
    largest, total = 0.0, 0.0
    for start in range(0, a.shape[2], _ROWS_COMPARED):
        rows = slice(start, start + _ROWS_COMPARED)
        gap = np.abs(np.asarray(a[:, :, rows], np.float64) - b[:, :, rows])
        largest, total = max(largest, float(gap.max())), total + float(gap.sum())
    return {"largest": largest, "mean": total / a.size}


def measure(assets: Path, folder: Path, size: int, tiles: list[int]) -> dict[str, Any]:
    model, page = str(assets / "det.onnx"), folder / "page.npy"
    make_page(assets, page, size)
    whole = folder / "whole.npy"
    found = {"whole": measure_whole(model, page, whole)}
    makers: dict[str, Callable[[], da.Array]] = {
        f"tiles of {tile}": lambda tile=tile: tiled(model, page, size, tile) for tile in tiles
    }
    makers[f"by hand, {_CHUNK} + {_OVERLAP}"] = lambda: by_hand(model, page, size)
    reference = whole if whole.exists() else None
    for name, make in makers.items():
        result = folder / f"{len(found)}.npy"
        found[name] = on_workers(make, result)
        print(size, name, {key: round(value, 2) for key, value in found[name].items()}, flush=True)
        if reference is None:
            # The whole does not fit in memory: the first exact tiles are the reference.
            reference = result
        else:
            found[name] |= difference(reference, result)
        if result != reference:
            result.unlink()
    for each in found.values():
        if "peak" in each and "peak" in found["whole"]:
            each["peak_of_whole"] = each["peak"] / found["whole"]["peak"]
    return found


def show(size: int, found: dict[str, Any]) -> None:
    def cell(each: dict[str, Any], key: str, form: str) -> str:
        return format(each[key], form) if key in each else "-"

    rows = [
        [
            name,
            cell(each, "seconds", ".1f"),
            cell(each, "cpu", ".1f"),
            f"{each['peak'] / 2**30:.2f}" if "peak" in each else each["refused"],
            cell(each, "peak_of_whole", ".3f"),
            cell(each, "largest", ".2g"),
            cell(each, "mean", ".2g"),
        ]
        for name, each in found.items()
    ]
    header = ["", "seconds", "of CPU", "peak GiB", "of the whole", "largest", "mean difference"]
    print_table(f"{size} x {size} pixels", header, rows)


def main(assets: Path, output: Path, sizes: list[int], tiles: list[int]) -> None:
    results = {}
    for size in sizes:
        with (
            tempfile.TemporaryDirectory() as folder,
            dask.config.set({"onnx.store.directory": f"{folder}/store"}),
        ):
            results[str(size)] = measure(assets.absolute(), Path(folder), size, tiles)
        show(size, results[str(size)])
    print(write_json(output, "tiles", {"sizes": results}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[8192, 16384], help="pixels of a side of the page"
    )
    parser.add_argument("--tile", type=int, nargs="+", default=[512, 1024, 2048])
    arguments = parser.parse_args()
    main(arguments.assets, arguments.output, arguments.size, arguments.tile)
