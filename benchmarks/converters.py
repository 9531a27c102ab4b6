"""Default models of converters on every collection, against plain ONNX Runtime.

    python benchmarks/converters.py [--only xgboost,skl2onnx] [--output benchmarks/results]

A row for each model of skl2onnx, onnxmltools (XGBoost, LightGBM) and CatBoost's own exporter, a
column for each face of the library: numpy, numpy in batches, dask.array of three chunks, pandas,
dask.dataframe of three partitions, bag, Delayed, and the command line on .npy, .csv and .parquet.
A cell is "ok" if the result equals that of ONNX Runtime, "-" where the model cannot come in that
form (a table of mixed columns as .npy), else the error. Converters that are not installed are
named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import warnings
from pathlib import Path

from converter_cases import CASES, NEEDS, case_proto, missing
from converter_faces import FACES, check, expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="converters, separated by commas")
    parser.add_argument("--match", default="", help="part of the models' names")
    parser.add_argument("--faces", default=",".join(FACES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    from common import print_table, write_json
    from distributed import LocalCluster

    chosen = [c for c in CASES if not arguments.only or c in arguments.only.split(",")]
    faces = arguments.faces.split(",")
    rows: list[list[str]] = []
    failures: list[str] = []
    versions = {}
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with LocalCluster(dashboard_address=None, **options) as cluster:
        for converter in chosen:
            if absent := missing(converter):
                print(f"{converter}: not installed ({', '.join(absent)})")
                continue
            versions |= {p: importlib.metadata.version(_dist(p)) for p in NEEDS[converter]}
            for case in CASES[converter]():
                if arguments.match not in case.name:
                    continue
                try:
                    wanted = expected(case_proto(case), case)
                except Exception as error:  # a converter's own failure is no fault of the library
                    text = str(error).splitlines()[0]
                    print(f"{converter} {case.name}: not converted: {text[:150]}")
                    continue
                cells = [check(case, face, cluster.scheduler_address, wanted) for face in faces]
                failures += [
                    f"{converter} {case.name} on {face}: {cell}"
                    for face, cell in zip(faces, cells, strict=True)
                    if cell not in ("ok", "-")
                ]
                short = [cell if cell in ("ok", "-") else "FAIL" for cell in cells]
                rows.append([converter, case.name, *short])
                print(" | ".join(rows[-1]), flush=True)
    print_table("Converted models", ["converter", "model", *faces], rows)
    print(f"{len(rows)} models, {len(failures)} failures")
    print("\n".join(failures))
    if arguments.output:
        found = {"versions": versions, "faces": faces, "rows": rows, "failures": failures}
        write_json(arguments.output, "converters", found)


def _dist(package: str) -> str:
    return {"sklearn": "scikit-learn"}.get(package, package)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
