"""Seconds that a generation loses when a worker is killed in the middle, and whether text changes.

    python benchmarks/generate_faults.py --prompts 1000 --output benchmarks/results

The same prompts are written after twice on a cluster of two workers: undisturbed, and with one
worker ended by SIGKILL as soon as a part of the partitions is done. A third run cuts the decoder
into two stages, of which one is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from itertools import islice
from pathlib import Path

import dask.bag as db
import numpy as np
from common import write_json
from distributed import Client, LocalCluster, as_completed
from generate import VOCABULARY, make_decoder

import dask_onnx as dx


def prompts_of(count: int) -> list[list[int]]:
    """Return prompts of 2 to 20 tokens."""
    random = np.random.default_rng(1)
    lengths = random.integers(2, 21, count)
    return [[int(t) for t in random.integers(1, VOCABULARY, n)] for n in lengths]


def written(
    client: Client, generator: dx.Generator, prompts: list, parts: int, kills: bool, tokens: int
) -> tuple[list, float, float | None]:
    """Return what is written, the seconds, and when a worker was killed; None for not at all."""
    bag = db.from_sequence(prompts, npartitions=parts)
    lazy = generator.generate(
        bag, max_new_tokens=tokens, temperature=1.0, top_p=0.9, seed=2, batch_rows=8
    )
    start, killed = time.perf_counter(), None
    futures = client.compute(lazy.to_delayed())
    if kills:
        list(islice(as_completed(futures), max(1, parts // 3)))
        pid = min(client.run(os.getpid).items())[1]
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter() - start
    found = [each for part in client.gather(futures) for each in part]
    return found, time.perf_counter() - start, killed


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--staged-prompts", type=int, default=100)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = dx.load(make_decoder(Path(folder) / "model.onnx", args.layers))
        for kind, cut, count in (
            ("whole", {}, args.prompts),
            ("two stages", {"n_stages": 2}, args.staged_prompts),
        ):
            generator, prompts = dx.Generator(model, **cut), prompts_of(count)
            options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
            with LocalCluster(**options) as cluster, Client(cluster) as client:
                dx.configure(client)
                written(client, generator, prompts[:8], 2, False, 2)  # sessions and trials
                parts = min(args.parts, count // 8)
                calm, seconds, _ = written(
                    client, generator, prompts, parts, False, args.new_tokens
                )
                # Equal keys would be equal results.
                again, with_death, killed = written(
                    client, generator, prompts, parts + 1, True, args.new_tokens
                )
            row = {
                "decoder": kind,
                "prompts": count,
                "tokens": sum(each.new_tokens for each in calm),
                "seconds": round(seconds, 2),
                "killed_after": round(killed or 0.0, 2),
                "seconds_with_death": round(with_death, 2),
                "seconds_lost": round(with_death - seconds, 2),
                "equal_rows": sum(a == b for a, b in zip(calm, again, strict=True)),
            }
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if args.output:
        write_json(args.output, "generate_faults", {"rows": rows})


if __name__ == "__main__":
    main()
