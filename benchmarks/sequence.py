"""A long sequence in shards: seconds and memory against tokens, whole and in query blocks.

    python benchmarks/sequence.py --tokens 2048 4096 --shards 8 32 --output benchmarks/results

An encoder of hidden size 384 and 12 heads (random weights) takes one sequence. Contestants, each on
a new cluster: the whole model as one task, and ``dx.Sharded(axis="sequence", n=...)``
with exact softmax over all keys, or with ``--key-blocks`` a partial softmax for each block of them.
The attention matrix of one layer is ``12 * tokens**2 * 4`` bytes: 0.75 GiB at 4,096 tokens, 12 GiB
at 16,384. A contestant that is killed or refused is reported as such.

Memory is the largest ``VmHWM`` of the workers, which includes the interpreter and mapped weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
from common import print_table, write_json
from distributed import Client, LocalCluster
from transformer import make_transformer

import dask_onnx as dx
from dask_onnx.sharding.strategy import Sharded

WIDTH, HEADS = 384, 12


def peak_bytes() -> int:
    """Return the peak resident bytes of this process (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def run(
    path: Path, x: np.ndarray, strategy: Sharded | None, options: argparse.Namespace
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Run one contestant on a new cluster; return seconds of each run, peak memory, result."""
    limit = options.memory_limit
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        model = dx.load(path)
        plan = "whole" if strategy is None else strategy
        session = dx.SessionSpec(arena_shrinkage=True)
        try:
            made: Any = model.plan(plan, shapes={"x": x.shape}, session=session)
            seconds = []
            result: np.ndarray | None = None
            for _ in range(options.rounds):
                began = time.perf_counter()
                result = model.predict(x, plan=made, batch_size=None)
                seconds.append(time.perf_counter() - began)
            peaks = client.run(peak_bytes).values()
        except Exception as error:  # of any kind: workers may run out of memory
            return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}, None
        return {"seconds": [round(s, 3) for s in seconds], "peak_bytes": max(peaks)}, result


def contestants(options: argparse.Namespace) -> dict[str, Sharded | None]:
    found: dict[str, Sharded | None] = {} if options.no_whole else {"whole": None}
    for n in options.shards:
        found[f"{n} query blocks"] = Sharded("sequence", n)
        for blocks in options.key_blocks:
            found[f"{n} query, {blocks} key blocks"] = Sharded("sequence", n, blocks)
    return found


def measure(path: Path, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((1, tokens, WIDTH), dtype=np.float32)
    found: dict[str, Any] = {}
    first: np.ndarray | None = None
    for name, strategy in contestants(options).items():
        found[name], result = run(path, x, strategy, options)
        first = result if first is None else first
        if first is not None and result is not None:
            difference = float(np.abs(result - first).max() / np.abs(first).max())
            found[name]["difference"] = difference
        print(tokens, name, found[name], flush=True)
    return found


def row_of(tokens: int, name: str, each: dict[str, Any]) -> Sequence[str]:
    if "failed" in each:
        return [f"{tokens:,}", name, each["failed"], "", ""]
    seconds, peak = min(each["seconds"]), each["peak_bytes"] / 2**30
    return [f"{tokens:,}", name, f"{seconds:.2f}", f"{peak:.2f}", f"{each['difference']:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--shards", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--key-blocks", type=int, nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory-limit", default="0", help='of a worker, such as "2GiB"; 0: none')
    parser.add_argument("--no-whole", action="store_true", help="omit the whole model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
    ):
        path = make_transformer(Path(folder) / "encoder.onnx", options.layers, WIDTH)
        found = {str(tokens): measure(path, tokens, options) for tokens in options.tokens}
    print_table(
        f"{options.layers} layers, {options.workers} workers of one thread",
        ["tokens", "plan", "seconds", "peak GiB", "difference"],
        [row_of(int(t), name, each) for t, rows in found.items() for name, each in rows.items()],
    )
    if options.output:
        asked = {key: value for key, value in vars(options).items() if key != "output"}
        write_json(options.output, "sequence", {"options": asked, "tokens": found})


if __name__ == "__main__":
    main()
