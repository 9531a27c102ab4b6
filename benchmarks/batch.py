"""Throughput of `batch_size="auto"` against fixed numbers of rows a run.

    python benchmarks/batch.py --assets .cache/assets --output benchmarks/results

Each model predicts a block of rows on one thread, with "auto" after its measurements are complete
and with fixed sizes, in alternating rounds. The result is the time of the best fixed size over the
time of "auto" within a round.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import dask
import numpy as np
from common import median_interval, print_table, timed, write_json
from throughput import squeezenet

import dask_onnx as dx

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def workloads(assets: Path, folder: Path) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Return models and their inputs, one or two seconds of work each."""
    rng = np.random.default_rng(0)

    def image(rows: int, *shape: int) -> np.ndarray:
        return rng.standard_normal((rows, 3, *shape), dtype=np.float32)

    def tokens(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.integers(low, high, shape)

    mask = {name: np.ones((256, 32), "i8") for name in ("attention_mask",)}
    kinds = {"token_type_ids": np.zeros((256, 32), "i8")}
    return {
        "squeezenet": (squeezenet(folder, is_open=True), {"": image(96, 224, 224)}),
        "det": (str(assets / "det.onnx"), {"": image(48, 320, 320)}),
        "cls": (str(assets / "cls.onnx"), {"": image(512, 48, 192)}),
        "minilm": (
            str(assets / "minilm.onnx"),
            {"input_ids": tokens(999, 20_000, 256, 32), **mask, **kinds},
        ),
        "magika": (str(assets / "magika.onnx"), {"": tokens(0, 257, 256, 2048).astype("i4")}),
        "deepcut": (
            str(assets / "deepcut.onnx"),
            {
                "input_1": tokens(0, 178, 4096, 21).astype("f4"),
                "input_2": tokens(0, 12, 4096, 21).astype("f4"),
            },
        ),
    }


def measure(path: str, feeds: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    model = dx.load(path)
    x = feeds.get("", feeds)
    plan = model.plan(session=dx.SessionSpec(intra_op_num_threads=1))
    rows = len(next(iter(feeds.values())))
    sizes: list[Any] = ["auto"]
    if model.analysis.batch.fixed_rows is None:
        sizes += [size for size in SIZES if size <= rows]
    seconds: dict[Any, list[float]] = {size: [] for size in sizes}
    with dask.config.set(scheduler="sync"):
        for _ in range(3):
            model.predict(x, plan=plan)
        for number in range(rounds):
            order = list(sizes)
            random.Random(number).shuffle(order)
            for size in order:
                seconds[size].append(
                    timed(lambda s=size: model.predict(x, plan=plan, batch_size=s))
                )
    medians = {size: float(np.median(values)) for size, values in seconds.items()}
    best = min((size for size in sizes if size != "auto"), key=medians.__getitem__, default="auto")
    ratios = [a / b for a, b in zip(seconds[best], seconds["auto"], strict=True)]
    return {
        "rows": rows,
        "best": best,
        "best_over_auto": median_interval(ratios),
        "rows_per_second": {str(size): round(rows / value, 1) for size, value in medians.items()},
        "explained": [line for line in plan.explain().splitlines() if "rows" in line][-2:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
    ):
        for name, (path, feeds) in workloads(arguments.assets, Path(folder)).items():
            found = results[name] = measure(path, feeds, arguments.rounds)
            print(name, *found["explained"], sep="\n  ")
    print_table(
        "rows of a run",
        ["", "best fixed", "rows/s", "auto rows/s", "best fixed / auto (95 %)"],
        [
            [
                name,
                found["best"],
                found["rows_per_second"][str(found["best"])],
                found["rows_per_second"]["auto"],
                "{:.3f} ({:.3f}-{:.3f})".format(*found["best_over_auto"]),
            ]
            for name, found in results.items()
        ],
    )
    if arguments.output:
        write_json(arguments.output, "batch", results)


if __name__ == "__main__":
    main()
