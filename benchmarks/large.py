"""A model that no worker can hold: a transformer of 3 GB on two workers of 2.5 GB each.

    python benchmarks/large.py --output benchmarks/results

`whole` is refused before anything is sent; `auto` cuts the model into a pipeline that keeps each
stage on its worker. Reported are the refusal, the verdict, the seconds of a first and of a second
run, the peak memory of each worker process as Dask counts it (mapped weights included), and the
difference to ONNX Runtime on the whole model in the client's process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnxruntime
import psutil
from common import file_array, write_json
from dask.utils import format_bytes, parse_bytes
from distributed import Client, LocalCluster
from transformer import make_transformer

import dask_onnx as dx


def resident() -> int:
    """Return the resident bytes of this process, mapped files included, as Dask measures them."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the highest value of `resident` so far, in bytes."""
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    path = make_transformer(folder / "model.onnx", arguments.layers, arguments.width)
    model = dx.load(path)
    rng = np.random.default_rng(1)
    shape = (arguments.batches, arguments.tokens, arguments.width)
    np.save(folder / "x.npy", rng.standard_normal(shape, dtype=np.float32))
    x = file_array(str(folder / "x.npy"), 1)
    found: dict[str, Any] = {"weights": model.analysis.parameter_bytes}
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=arguments.memory_limit,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        found["bare"] = sorted(client.run(resident).values())
        try:
            model.predict(x)
        except dx.PlanError as error:
            found["refused"] = str(error)
        assert "refused" in found, "the whole model was not refused"
        plan = model.plan("auto", shapes={"x": (1, *shape[1:])})
        assert plan.verdict is not None
        found["verdict"] = [plan.verdict.sentence]
        for run in ("first", "second"):
            began = time.perf_counter()
            result = model.predict(x, plan=plan).compute()
            found[f"{run}_seconds"] = time.perf_counter() - began
        found["peak"] = sorted(client.run(peak).values())
    if arguments.compare:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = session.run(None, {"x": np.load(folder / "x.npy")[:1]})[0]
        found["difference"] = float(np.abs(result[:1] - expected).max() / np.abs(expected).max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--width", type=int, default=2064, help="a multiple of 12 heads")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--memory-limit", default="2.5GB", help="of a worker")
    parser.add_argument("--no-compare", dest="compare", action="store_false")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        dask.config.set({"onnx.store.directory": f"{name}/store"}),
    ):
        found = measure(Path(name), arguments)
    limit = parse_bytes(arguments.memory_limit)
    print(f"{format_bytes(found['weights'])} of weights, workers of {format_bytes(limit)}")
    print(f"whole: {found['refused']}")
    print("\n".join(found["verdict"]))
    print(
        f"{arguments.batches} batches: {found['first_seconds']:.1f} s, then "
        f"{found['second_seconds']:.1f} s"
    )
    print(
        "peak of the workers: "
        + " and ".join(map(format_bytes, found["peak"]))
        + ", bare "
        + " and ".join(map(format_bytes, found["bare"]))
    )
    if "difference" in found:
        print(f"relative difference to the whole model in this process: {found['difference']:.1e}")
    if arguments.output:
        write_json(arguments.output, "large", found)


if __name__ == "__main__":
    main()
