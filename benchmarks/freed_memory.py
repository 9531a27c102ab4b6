"""Time of a job whose workers give freed memory back at once, and of one whose workers keep it.

    python benchmarks/freed_memory.py --output benchmarks/results

The same lazy request runs on two clusters of two workers, in turns: one whose workers are as Dask's
nannies start them (``MALLOC_TRIM_THRESHOLD_=65536``), one with ``onnx.kept-freed-bytes``. Each task
decodes and shrinks JPEG pictures and runs SqueezeNet on them, one by one. Page faults and resident
memory are those of all workers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import dask.config
import numpy as np
import psutil
from common import alternate, median_interval, print_table, spread, write_json
from distributed import Client, LocalCluster
from PIL import Image
from throughput import squeezenet

import dask_onnx as dx

_SIDE = 224
_WAYS = {"as Dask starts workers": None, "onnx.kept-freed-bytes": 16 * 2**20}


@contextlib.contextmanager
def cluster_of(kept: int | None) -> Iterator[Client]:
    with (
        dask.config.set({"onnx.kept-freed-bytes": kept}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def jpeg() -> bytes:
    """Return a picture of 640 x 427 pixels, as a file."""
    rows, columns = np.mgrid[:427, :640]
    pixels = np.stack([rows, columns, rows * columns // 97], axis=-1).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "jpeg")
    return target.getvalue()


def pictures(block: np.ndarray, content: bytes) -> np.ndarray:
    """Return one picture, decoded and normalised for each row."""
    found = []
    for _ in block:
        picture = Image.open(io.BytesIO(content)).convert("RGB").resize((_SIDE, _SIDE))
        scaled = (np.asarray(picture, np.float32) / 255 - 0.5) / 0.25
        found.append(scaled.transpose(2, 0, 1))
    return np.stack(found)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def run(client: Client, model: dx.Model, rows: da.Array, content: bytes) -> dict[str, int]:
    """Run the request once; return page faults of the run and resident bytes of all workers."""
    block = rows.map_blocks(
        pictures,
        content,
        new_axis=[1, 2, 3],
        chunks=(rows.chunks[0], 3, _SIDE, _SIDE),
        dtype=np.float32,
        meta=np.empty((0, 0, 0, 0), np.float32),
    )
    before = sum(client.run(faults).values())
    with client.as_current():
        client.compute(model.predict(block, batch_size=1).sum()).result()
    return {
        "page_faults": sum(client.run(faults).values()) - before,
        "resident_bytes": sum(client.run(resident).values()),
    }


def measure(pictures: int, chunk: int, rounds: int) -> dict[str, Any]:
    """Return seconds, page faults and memory of both ways, and the ratio of their seconds."""
    found: dict[str, list[dict[str, int]]] = {way: [] for way in _WAYS}
    rows = da.zeros(pictures, chunks=chunk, dtype=np.uint8)
    content = jpeg()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = dx.load(squeezenet(folder, is_open=True))
        clients = {way: stack.enter_context(cluster_of(kept)) for way, kept in _WAYS.items()}

        def once(way: str) -> None:
            found[way].append(run(clients[way], model, rows, content))

        for way in clients:
            once(way)  # builds sessions
        seconds = alternate({way: lambda way=way: once(way) for way in clients}, rounds)
    plain, kept = (seconds[way] for way in _WAYS)
    return {
        "ways": {
            way: {
                "seconds": spread(seconds[way]),
                "page_faults": spread([each["page_faults"] for each in runs]),
                "resident_mib": [round(each["resident_bytes"] / 2**20) for each in runs],
            }
            for way, runs in found.items()
        },
        "ratio": median_interval([a / b for a, b in zip(plain, kept, strict=True)]),
    }


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=480)
    parser.add_argument("--chunk", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = measure(args.pictures, args.chunk, args.rounds)
    print_table(
        f"{args.pictures} pictures in chunks of {args.chunk}, SqueezeNet, two workers",
        ["workers", "seconds", "page faults", "resident MiB at the end"],
        [
            [
                way,
                f"{each['seconds']['median']:.2f}",
                f"{each['page_faults']['median']:,.0f}",
                str(each["resident_mib"][-1]),
            ]
            for way, each in results["ways"].items()
        ],
    )
    print(f"time of the first, of the second: {results['ratio']}")
    if args.output:
        write_json(args.output, "freed_memory", results)


if __name__ == "__main__":
    main()
