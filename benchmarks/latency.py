"""`plan("auto", aim="latency")` beside the whole model: paired requests on small and middle models.

    python benchmarks/latency.py --assets .cache/assets --output benchmarks/results

Each request has one row. Nothing is measured beforehand, so that the choice rests on predictions
for a common CPU; then the same after the nodes of each model were measured. In this process, and
on a cluster of two processes of one thread. A ratio above 1 with an interval that does not reach 1
is a plan that `auto` should not have chosen.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
from common import alternate, median_interval, print_table, timed, write_json
from distributed import Client, LocalCluster
from planner import Feeds, feeds_of, source_of

import dask_onnx as dx

_MODELS = (
    "silero_vad",
    "boosting",
    "deepcut",
    "oskut_deepcut",
    "magika",
    "rawi",
    "tashkeel",
    "cls",
    "rec",
    "det",
    "minilm",
)
_ENOUGH_SECONDS, _MOST_ROUNDS, _FEWEST_ROUNDS = 3.0, 200, 10
"""Limits of the rounds of each pair: seconds, and rounds."""


def compare(model: dx.Model, feeds: Feeds) -> dict[str, Any]:
    """Return what auto chose, the ratio of its seconds to whole's with its interval, and both."""
    shapes = {name: array.shape for name, array in feeds.items()}
    auto = model.plan("auto", shapes=shapes, aim="latency")
    whole = model.plan("whole", shapes=shapes, aim="latency")
    verdict = getattr(auto, "verdict", None)  # plans that split one request have none
    size: Any = "auto" if verdict is not None and verdict.best.parts > 1 else None
    options = {} if verdict is None else {"batch_size": size}
    runners: dict[str, Callable[[], Any]] = {
        "auto": partial(model.predict, feeds, plan=auto, **options),
        "whole": partial(model.predict, feeds, plan=whole, batch_size=None),
    }
    for _ in range(3):
        slowest = max(map(timed, runners.values()))
    rounds = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(_ENOUGH_SECONDS / slowest / 2)))
    seconds = alternate(runners, rounds)
    ratios = [a / b for a, b in zip(seconds["auto"], seconds["whole"], strict=True)]
    return {
        "chosen": type(auto).__name__ if verdict is None else verdict.chosen,
        "ratio": median_interval(ratios),
        "measured": [float(np.median(seconds[name])) for name in ("auto", "whole")],
    }


def results(assets: Path) -> dict[str, Any]:
    """Return the comparison of each model, before and after its nodes were measured."""
    found = {}
    for name in _MODELS:
        with (
            tempfile.TemporaryDirectory() as folder,
            dask.config.set({"onnx.store.directory": folder}),
        ):
            model, feeds = dx.load(source_of(name, assets)), feeds_of(1, name)
            found[name] = compare(model, feeds)
            model.plan(measure=feeds)
            found[f"{name}, measured"] = compare(model, feeds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {"this process": results(options.assets)}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        found["two workers"] = results(options.assets)
    for place, models in found.items():
        print_table(
            f"One request for latency, {place}",
            ["model", "auto chose", "auto ms", "whole ms", "auto / whole", "95 %"],
            [
                [
                    name,
                    each["chosen"],
                    *(f"{1e3 * seconds:.2f}" for seconds in each["measured"]),
                    f"{each['ratio'][0]:.3f}",
                    f"{each['ratio'][1]:.3f} to {each['ratio'][2]:.3f}",
                ]
                for name, each in models.items()
            ],
        )
    if options.output:
        write_json(options.output, "latency", found)


if __name__ == "__main__":
    main()
