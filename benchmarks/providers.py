"""Execution providers side by side: differences of results, plans, and CPU seconds of a request.

    python -m venv venv-openvino
    venv-openvino/bin/pip install onnxruntime-openvino 'dask[array,dataframe]' distributed onnx ...
    venv-openvino/bin/pip install --no-deps --editable .
    venv-openvino/bin/python benchmarks/providers.py --assets .cache/assets

Each model runs whole and cut, on one thread, in each provider that this ONNX Runtime has beside the
CPU's; the CPU's own whole plan is what results are compared with. CPU seconds are those of all
threads of the process, so that a provider that uses more threads gains nothing by it. Rounds
alternate between the contestants.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CPU = "CPUExecutionProvider"
LEFT_OUT = ("AzureExecutionProvider",)
"""Providers that run no model here."""
OPTIONS: dict[str, dict[str, Any]] = {
    "OpenVINOExecutionProvider": {"num_of_threads": 1},
}
"""Options by which a provider uses one thread, as the CPU's does."""
PLANS = {"whole": None, "fused": 4}
RNG = np.random.default_rng(0)


def feeds_of(assets: Path) -> dict[str, Any]:
    """Return a request for each model."""
    tokens = RNG.integers(1000, 20000, (4, 64))
    return {
        "det": page(assets),
        "cls": RNG.random((8, 3, 48, 192), dtype=np.float32),
        "minilm": {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
        },
    }


def page(assets: Path) -> np.ndarray:
    """Return a part of a page of text: on noise all probabilities are rounding errors."""
    from PIL import Image

    with Image.open(assets / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB").crop((0, 0, 320, 320)), np.float32)
    return ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[np.newaxis].copy()


def measured(assets: Path, names: list[str], rounds: int) -> list[dict[str, Any]]:
    import onnxruntime

    import dask_onnx as dx

    others = [
        name for name in onnxruntime.get_available_providers() if name not in (CPU, *LEFT_OUT)
    ]
    found = []
    for name, feeds in feeds_of(assets).items():
        if name not in names:
            continue
        model = dx.load(assets / f"{name}.onnx")
        expected, runners, seconds, rows = None, {}, {}, {}
        for provider in (CPU, *others):
            for plan_name, n_stages in PLANS.items():
                options = OPTIONS.get(provider, {})
                session = dx.SessionSpec(providers=((provider, options),), intra_op_num_threads=1)
                began = time.perf_counter()
                plan = model.plan(plan_name, n_stages=n_stages, session=session)
                planned = time.perf_counter() - began
                kernels = {stage.kernel for stage in plan.stages}

                def run(plan: Any = plan, model: Any = model, feeds: Any = feeds) -> Any:
                    return model.predict(feeds, plan=plan, batch_size=None)

                began = time.perf_counter()
                results = as_dict(run())
                built = time.perf_counter() - began
                expected = expected or results
                key = (provider, plan_name)
                runners[key], seconds[key] = run, []
                rows[key] = {
                    "model": name,
                    "provider": provider.removesuffix("ExecutionProvider"),
                    "plan": plan_name,
                    "stages": len(plan.stages),
                    "kernels": sorted(kernels),
                    "plan_seconds": round(planned, 3),
                    "first_seconds": round(built, 3),
                    "relative_difference": difference(results, expected),
                }
        for number in range(rounds):
            order = list(runners)
            random.Random(number).shuffle(order)
            for key in order:
                before = time.process_time()
                runners[key]()
                seconds[key].append(time.process_time() - before)
        base = float(np.median(seconds[CPU, "whole"]))
        for key, row in rows.items():
            cpu = float(np.median(seconds[key]))
            found.append({**row, "cpu_seconds": round(cpu, 4), "ratio": round(cpu / base, 3)})
    return found


def as_dict(results: Any) -> dict[str, Any]:
    return dict(results) if hasattr(results, "items") else {"": results}


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference relative to the largest value of an output."""
    worst = 0.0
    for name, value in expected.items():
        scale = float(np.abs(value).max()) or 1.0
        worst = max(worst, float(np.abs(np.asarray(found[name]) - value).max()) / scale)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="*", default=["det", "cls", "minilm"])
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="Of the difference; exit code 1 above it."
    )
    arguments = parser.parse_args()
    import dask
    from common import print_table, write_json

    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": folder, "scheduler": "sync"}),
    ):
        found = measured(arguments.assets, arguments.models, arguments.rounds)
    columns = list(found[0])
    print_table(
        "Execution providers, one thread",
        columns,
        [
            [
                f"{row[name]:.1e}" if name == "relative_difference" else str(row[name])
                for name in columns
            ]
            for row in found
        ],
    )
    if arguments.output is not None:
        write_json(arguments.output, "providers", {"rows": found})
    if {row["provider"] for row in found} == {"CPU"}:
        print("this onnxruntime has the CPU's provider only")
    worst = max(row["relative_difference"] for row in found)
    if worst > arguments.tolerance:
        print(f"a result differs by {worst:.1e}, more than {arguments.tolerance:.1e}")
        sys.exit(1)


if __name__ == "__main__":
    main()
