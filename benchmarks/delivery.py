"""Bytes of a model that are sent to a host that can read neither its file nor the store.

    python benchmarks/delivery.py --output benchmarks/results

Needs root. Each host is a network namespace, the second also a mount namespace in which an empty
file system hides the client's working folder. The first host has the scheduler and the client, the
second two worker processes. The kernel counts the bytes that cross the link.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from two_hosts import ADDRESSES, SCHEDULER_PORT, Link, stop

PROCESSES = 2


def client_side(model_path: str, vanish: bool) -> None:
    """Compute one lazy prediction over many chunks; runs on the first host."""
    import dask.array as da
    from distributed import Client

    import dask_onnx as dx

    model = dx.load(model_path)
    if vanish:
        Path(model_path).unlink()
    client = Client(f"tcp://{ADDRESSES[0]}:{SCHEDULER_PORT}")
    client.wait_for_workers(PROCESSES)
    x = np.random.default_rng(0).standard_normal((16, 8, 768), dtype=np.float32)
    began = time.perf_counter()
    y = model.predict(da.from_array(x, chunks=(1, 8, 768))).compute()
    seconds = time.perf_counter() - began
    difference = float(np.abs(y - model(x)).max())
    size = model._onnx.parameter_bytes
    sys.stdout.write(json.dumps({"seconds": seconds, "difference": difference, "bytes": size}))


def measure(vanish: bool) -> dict[str, Any]:
    from transformer import make_transformer

    with tempfile.TemporaryDirectory() as work, Link() as link:
        folder = Path(work)
        path = make_transformer(folder / "client" / "model.onnx", layers=4)
        own = {**os.environ, "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"}
        own["DASK_ONNX__STORE__DIRECTORY"] = str(folder / "client" / "store")
        dask = f"{sys.executable} -m dask"
        scheduler = f"scheduler --host {ADDRESSES[0]} --port {SCHEDULER_PORT} --no-dashboard"
        worker = f"worker tcp://{ADDRESSES[0]}:{SCHEDULER_PORT} --host {ADDRESSES[1]}"
        worker += f" --nworkers {PROCESSES} --nthreads 1 --no-dashboard --memory-limit 6GiB"
        worker += f" --local-directory {folder}/host"
        hidden = f"mount -t tmpfs -o mode=700 none {folder}/client && exec {dask} {worker}"
        commands = [
            [*link.inside(0), *f"{dask} {scheduler}".split()],
            [*link.inside(1), "unshare", "--mount", "sh", "-c", hidden],
        ]
        processes = [subprocess.Popen(c, env=own, stdout=subprocess.DEVNULL) for c in commands]
        try:
            before = link.sent(0)
            done = subprocess.run(
                [*link.inside(0), sys.executable, __file__, "--client", str(path)]
                + (["--vanish"] if vanish else []),
                env=own,
                stdout=subprocess.PIPE,
                check=True,
            )
            facts = dict(json.loads(done.stdout))
            facts["sent"] = link.sent(0) - before
        finally:
            stop(processes)
    facts["of_the_model"] = round(facts["sent"] / facts["bytes"], 3)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--vanish", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client_side(arguments.client, arguments.vanish)
        return
    from common import write_json

    results = {"hidden file": measure(False), "file gone since loading": measure(True)}
    for name, facts in results.items():
        print(
            f"{name}: {facts['bytes'] / 2**20:.0f} MiB of weights, {PROCESSES} processes on a host "
            f"that can read neither file nor store: {facts['sent'] / 2**20:.0f} MiB sent to it "
            f"({facts['of_the_model']} of the model), {facts['seconds']:.1f} s, "
            f"difference {facts['difference']:.1e}"
        )
    if arguments.output:
        write_json(arguments.output, "delivery", results)


if __name__ == "__main__":
    main()
