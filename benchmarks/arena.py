"""Memory of a model's stages: one arena for all sessions of a process against one arena each.

    python benchmarks/arena.py --assets .cache/assets --output benchmarks/results

PP-OCR detection in 12 stages on 4 rows of 640 x 640, each way in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WAYS = {"one arena": {}, "one each": {"session.use_env_allocators": "0"}}
STAGES, ROWS, SIZE = 12, 4, 640


def child(way: str, assets: Path, folder: str) -> None:
    import dask
    import psutil

    import dask_onnx as dx

    with dask.config.set({"onnx.store.directory": folder, "scheduler": "sync"}):
        model = dx.load(assets / "det.onnx")
        spec = dx.SessionSpec(intra_op_num_threads=1, config=WAYS[way])
        plan = model.plan("fused", n_stages=STAGES, session=spec)
        x = np.random.default_rng(0).random((ROWS, 3, SIZE, SIZE), dtype=np.float32)
        model.predict(x[:1, :, :64, :64], plan=plan, batch_size=None)
        process, seconds = psutil.Process(), []
        before = process.memory_info().rss
        for _ in range(5):
            began = time.perf_counter()
            model.predict(x, plan=plan, batch_size=None)
            seconds.append(time.perf_counter() - began)
        grown = process.memory_info().rss - before
    sys.stdout.write(json.dumps({"mib": grown / 2**20, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.assets, arguments.folder)
        return
    from common import median_interval, print_table, write_json

    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--child", way, "--folder", folder]
                command += ["--assets", str(arguments.assets)]
                done = subprocess.run(command, check=True, capture_output=True)
                found[way].append(json.loads(done.stdout))
    runs = {way: [min(f["seconds"]) for f in results] for way, results in found.items()}
    mib = {way: float(np.median([f["mib"] for f in results])) for way, results in found.items()}
    ratio = median_interval(
        [a / b for a, b in zip(runs["one each"], runs["one arena"], strict=True)]
    )
    print_table(
        f"{STAGES} stages, {ROWS} rows of {SIZE} x {SIZE}: growth of the process",
        ["", "MiB", "seconds a request"],
        [[way, f"{mib[way]:.0f}", f"{np.median(runs[way]):.3f}"] for way in WAYS],
    )
    print("one each / one arena, seconds: {:.2f} ({:.2f}-{:.2f})".format(*ratio))
    if arguments.output:
        write_json(arguments.output, "arena", {"mib": mib, "seconds": runs, "ratio": ratio})


if __name__ == "__main__":
    main()
