"""A decoder that no worker can hold: refused whole, and written by two stages, within a limit.

    python benchmarks/generate_memory.py --output benchmarks/results

The decoder is that of `generate.py` with more layers. Workers get a memory limit under which its
weights do not fit, and half of them do. The tokens are compared with a plain loop of ONNX Runtime
in this process, which has no limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import dask.bag as db
import numpy as np
import psutil
from common import write_json
from distributed import Client, LocalCluster
from generate import VOCABULARY, make_decoder, plain_loop

import dask_onnx as dx

_SHARE_THAT_FITS = 0.75
"""Share of the weights for which a worker has room until Dask pauses it."""
_PAUSE_SHARE = 0.8
"""Share of a worker's limit at which Dask pauses it, by default."""


def resident() -> int:
    """Return the resident bytes of this process, as Dask's memory monitor counts them."""
    return psutil.Process().memory_info().rss


def idle_worker_bytes() -> int:
    """Return the resident bytes of a worker that has imported what a generation imports."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return client.submit(_imported).result()


def _imported() -> int:
    import onnxruntime

    import dask_onnx.generation.prompt_writer

    assert dask_onnx.generation.prompt_writer and onnxruntime
    return resident()


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    random = np.random.default_rng(1)
    lengths = random.integers(2, 21, args.prompts)
    prompts = [[int(t) for t in random.integers(1, VOCABULARY, n)] for n in lengths]
    with tempfile.TemporaryDirectory() as folder:
        path = make_decoder(Path(folder) / "model.onnx", args.layers)
        weights = path.stat().st_size
        limit = int((idle_worker_bytes() + _SHARE_THAT_FITS * weights) / _PAUSE_SHARE)
        model = dx.load(path, name="decoder")
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        bag = db.from_sequence(prompts, npartitions=2)
        with LocalCluster(memory_limit=limit, **options) as cluster, Client(cluster) as client:
            dx.configure(client)
            try:
                dx.Generator(model).generate(bag, max_new_tokens=args.new_tokens).compute()
                refused = None
            except dx.DaskOnnxError as error:
                refused = f"{type(error).__name__}: {error}"
            staged = dx.Generator(model, n_stages=2)
            began = time.perf_counter()
            found = staged.generate(bag, max_new_tokens=args.new_tokens, batch_rows=8).compute()
            seconds = time.perf_counter() - began
            held = sorted(client.run(resident).values())
        expected = [plain_loop(str(path), [each], args.new_tokens, 1)[0] for each in prompts]
    results = {
        "weights_mib": round(weights / 2**20),
        "limit_mib": round(limit / 2**20),
        "whole_refused_by": refused,
        "two_stages_seconds": round(seconds, 1),
        "workers_mib": [round(each / 2**20) for each in held],
        "equal_rows": sum(
            list(ours.tokens) == list(theirs) for ours, theirs in zip(found, expected, strict=True)
        ),
        "rows": len(prompts),
    }
    for name, value in results.items():
        print(f"{name}: {value}")
    if args.output:
        write_json(args.output, "generate_memory", results)


if __name__ == "__main__":
    main()
