"""Report of the models in a folder: are their rows proven independent, and which node decides.

    python benchmarks/rows.py FOLDER [--output ROWS.md]

Prints a line for each ``.onnx`` file: proven, coupled (dynamic quantisation), kept whole with the
node that decides, or the fixed number of rows that it was exported with.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import dask_onnx as dx
from dask_onnx.analysis.batch_facts import BatchFacts


def verdict(batch: BatchFacts) -> tuple[str, str]:
    """Return how the rows of a model are treated, and why."""
    if batch.fixed_rows is not None:
        return f"runs of {batch.fixed_rows}", "exported so"
    if batch.blockers:
        return "kept whole", str(batch.blockers[0])
    if batch.coupled:
        return "coupled", batch.coupled[0]
    if all(axis is None for axis in batch.input_axes.values()):
        return "given once", "no open axis"
    axes = ", ".join(f"{n}[{a}]" for n, a in batch.input_axes.items() if a is not None)
    return "proven", axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = ["| model | rows | by |", "| --- | --- | --- |"]
    for path in sorted(arguments.folder.glob("**/*.onnx")):
        rows, why = verdict(dx.load(str(path)).analysis.batch)
        lines.append(f"| {path.stem} | {rows} | {why.replace('|', '/')} |")
        print(lines[-1])
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
