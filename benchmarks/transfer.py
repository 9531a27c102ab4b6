"""Gain from packing: a cut model on two hosts whose link has a given rate.

    python benchmarks/transfer.py --assets .cache/assets --output benchmarks/results

Needs root: the hosts are two network namespaces (see `two_hosts`), whose link has a limited rate in
both directions. PP-OCR detection is cut at one value; the first stage runs on one host and the
second on the other, for windows of a page image. Contestants take turns on the same two workers:
settings are changed and the connections between the workers closed, so that they negotiate again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from two_hosts import ADDRESSES, SCHEDULER_PORT, answer, ask, two_hosts

CONTESTANTS = {
    "none": {"distributed.comm.compression": False, "onnx.transfer.pack": False},
    "dask lz4": {"distributed.comm.compression": "lz4", "onnx.transfer.pack": False},
    "ours": {"distributed.comm.compression": "lz4", "onnx.transfer.pack": True},
}
CUT = "batch_norm_1.tmp_4"
"""Value at which the model is cut: (N, 24, H / 2, W / 2)."""


def pictures(assets: Path, rows: int, size: int) -> np.ndarray:
    """Return windows of a page as PP-OCR input: float32, shape (rows, 3, size, size)."""
    from PIL import Image

    page = Image.open(assets / "page.png").convert("RGB")
    page = page.resize((page.width * 2, page.height * 2))
    pixels = np.asarray(page)
    rng = np.random.default_rng(0)
    tops = rng.integers(0, pixels.shape[0] - size + 1, rows)
    lefts = rng.integers(0, pixels.shape[1] - size + 1, rows)
    cut = np.stack([pixels[t : t + size, x : x + size] for t, x in zip(tops, lefts, strict=True)])
    return np.ascontiguousarray(((cut / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)).astype("f4")


def client_side(settings: dict[str, Any]) -> None:
    """Read a contestant a line from stdin and answer with seconds; runs on the first host."""
    import dask
    from distributed import Client, wait

    import dask_onnx as dx

    model = dx.load(Path(settings["assets"]) / "det.onnx")
    x = pictures(Path(settings["assets"]), settings["rows"], settings["size"])
    plan = model.plan(dx.at_values([CUT]), shapes={"x": (1, *x.shape[1:])})
    between = model.predict(x[:4], outputs=CUT)
    expected = model.predict(x, plan=plan, batch_size=1).reshape(len(x), -1).max(axis=1)
    client = Client(f"tcp://{ADDRESSES[0]}:{SCHEDULER_PORT}")
    client.wait_for_workers(2)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    pinned = [next(w for w in workers if address in w) for address in ADDRESSES]
    inputs = client.scatter(list(x[:, None]), workers=[pinned[0]])

    def settle(values: dict[str, Any], peers: list[str], dask_worker: Any) -> None:
        dask.config.set(values)
        for peer in peers:
            dask_worker.rpc.remove(peer)

    def highest(block: np.ndarray) -> float:
        return float(block.max())

    def request(row: Any) -> Any:
        y = model.predict(dask.delayed(row), plan=plan, batch_size=1)
        graph = y.__dask_graph__()
        stages = [name for name in graph.layers if name.partition("-")[0] in labels]
        for name, worker in zip(stages, pinned, strict=True):
            graph.layers[name].annotations["workers"] = (worker,)
        return dask.delayed(highest)(y)

    labels = [stage.label for stage in plan.stages]
    answer({"zeros": float(np.mean(between == 0)), "mib": between[:1].nbytes / 2**20})
    for line in sys.stdin:
        client.run(settle, CONTESTANTS[line.strip()], pinned)
        wait(client.compute([request(row) for row in inputs[:2]], optimize_graph=False))
        began = time.perf_counter()
        futures = client.compute([request(row) for row in inputs], optimize_graph=False)
        found = client.gather(futures)
        seconds = time.perf_counter() - began
        np.testing.assert_allclose(found, expected, atol=1e-4)
        client.cancel(futures)
        answer({"seconds": seconds})


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from common import median_interval, print_table

    rng = np.random.default_rng(0)
    settings = {
        "assets": str(arguments.assets.absolute()),
        "rows": arguments.rows,
        "size": arguments.size,
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work, two_hosts(__file__, settings, work) as hosts:
        link, client = hosts
        facts = ask(client)
        title = (
            f"{arguments.rows} rows of {arguments.size} x {arguments.size}, cut at {CUT}: "
            f"{facts['mib']:.1f} MiB a row, {facts['zeros']:.0%} zeros"
        )
        for megabits in arguments.rates:
            link.limit(megabits)
            seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
            wire: dict[str, list[int]] = {name: [] for name in CONTESTANTS}
            for number in range(arguments.rounds + 1):
                for name in rng.permutation(list(CONTESTANTS)):
                    before = link.sent(0)
                    took = ask(client, str(name))["seconds"]
                    if number:  # the first round builds sessions and measures the link
                        seconds[str(name)].append(took)
                        wire[str(name)].append(link.sent(0) - before)
            results[str(megabits)] = {
                name: {
                    "seconds": [round(value, 4) for value in seconds[name]],
                    "wire_mib": round(float(np.median(wire[name])) / 2**20, 2),
                    "none_over_it": median_interval(
                        [a / b for a, b in zip(seconds["none"], seconds[name], strict=True)]
                    ),
                    "best_over_it": median_interval(
                        [
                            min(row) / own
                            for *row, own in zip(
                                *(seconds[other] for other in CONTESTANTS if other != name),
                                seconds[name],
                                strict=True,
                            )
                        ]
                    ),
                }
                for name in CONTESTANTS
            }
            print_table(
                f"{megabits} Mbit/s; {title}",
                [
                    "",
                    "seconds",
                    "MiB on the wire",
                    "none / it (95 %)",
                    "best other / it (95 %)",
                ],
                [
                    [
                        name,
                        f"{np.median(row['seconds']):.2f}",
                        f"{row['wire_mib']:.1f}",
                        "{:.2f} ({:.2f}-{:.2f})".format(*row["none_over_it"]),
                        "{:.2f} ({:.2f}-{:.2f})".format(*row["best_over_it"]),
                    ]
                    for name, row in results[str(megabits)].items()
                ],
            )
        return {"cut": CUT, **facts, **settings, "rates": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    if arguments.client:
        client_side(json.loads(arguments.client))
        return
    from common import write_json

    results = measure(arguments)
    results.pop("assets")
    if arguments.output:
        write_json(arguments.output, "transfer", results)


if __name__ == "__main__":
    main()
