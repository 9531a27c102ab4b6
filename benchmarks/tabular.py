"""Tables: a scikit-learn pipeline over rows of Parquet, in and out.

    pip install dask-ml      # for that contestant; left out if not installed
    python benchmarks/tabular.py --output benchmarks/results

Gradient boosting on eight numbers and three columns of categories (strings), exported with
skl2onnx. Contestants, in alternating rounds, on the same files, two processes of one thread each;
all write the two probabilities of each row:

- limit: two bare processes, each with pyarrow and a one-thread ORT session, no Dask
- ours: `model.predict(dd.read_parquet(...)).to_parquet(...)` with default settings
- ours, fused: the same with `compute=False`, then `.optimize().compute()`, since Dask fuses tables
  only on request: one task for each partition instead of four
- hand-made: `map_partitions` with a session cached in an imported module
- hand-made, fused: the same in one task for each partition
- scikit-learn: `map_partitions` with the fitted pipeline cached in an imported module
- dask-ml: `ParallelPostFit(pipeline).predict_proba`
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import joblib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from common import against, alternate, print_against_limit, timed, write_json
from distributed import Client, LocalCluster
from imported_session import one_thread_session
from imported_tables import COLUMNS, halves, probabilities, with_estimator, with_session
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import dask_onnx as dx

NUMBERS = tuple(f"n{i}" for i in range(8))
CATEGORIES = {
    "city": [f"city {i}" for i in range(30)],
    "colour": ["red", "green", "blue", "white"],
    "kind": [f"kind {i}" for i in range(12)],
}
META = pd.DataFrame(np.empty((0, 2), np.float32), columns=COLUMNS)
SIZES = (16, 64, 256, 1024, 4096, 16384, 65536)


def table(rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: rng.standard_normal(rows).astype(np.float32) for name in NUMBERS})
    codes = {name: rng.integers(0, len(known), rows) for name, known in CATEGORIES.items()}
    for name, known in CATEGORIES.items():
        frame[name] = np.asarray(known, dtype=object)[codes[name]]
    score = frame["n0"] * frame["n1"] + np.sin(codes["city"]) + (codes["kind"] % 3) * frame["n2"]
    return frame, (score > 0.3).to_numpy()


def make_models(folder: Path) -> tuple[str, str]:
    """Write the fitted pipeline as ONNX and with joblib; return both paths."""
    frame, target = table(20_000, 0)
    pipeline = make_pipeline(
        ColumnTransformer(
            [("codes", OneHotEncoder(handle_unknown="ignore"), list(CATEGORIES))],
            remainder="passthrough",
        ),
        GradientBoostingClassifier(n_estimators=60, max_depth=4, random_state=0),
    ).fit(frame, target)
    types = [
        (name, StringTensorType([None, 1]) if name in CATEGORIES else FloatTensorType([None, 1]))
        for name in frame.columns
    ]
    model = to_onnx(pipeline, initial_types=types, options={"zipmap": False})
    (folder / "pipeline.onnx").write_bytes(model.SerializeToString())
    joblib.dump(pipeline, folder / "pipeline.joblib")
    return str(folder / "pipeline.onnx"), str(folder / "pipeline.joblib")


def make_data(folder: Path, rows: int, partitions: int) -> str:
    folder.mkdir()
    for number in range(partitions):
        count = rows // partitions + (number < rows % partitions)
        frame, _ = table(count, number + 1)
        frame.to_parquet(folder / f"part-{number:04d}.parquet", index=False)
    return str(folder)


def bare_process(connection: Connection, files: list[Path], model: str, out: str) -> None:
    """Process some files for each number of rows a run that arrives, until it is 0."""
    running = one_thread_session(model)
    connection.send("ready")
    while per_run := connection.recv():
        for path in files:
            found = probabilities(running, pq.read_table(path).to_pandas(), per_run)
            found.to_parquet(Path(out) / path.name, index=False)
        connection.send("done")


@contextmanager
def bare_pair(data: str, model: str, out: str) -> Iterator[Callable[[int], None]]:
    """Start two warm processes; yield a function of the rows a run that has both work once."""
    context = multiprocessing.get_context("spawn")
    started = []
    for files in halves(data):
        here, there = context.Pipe()
        process = context.Process(target=bare_process, args=(there, files, model, out))
        process.start()
        started.append((process, here))
    for _, connection in started:
        connection.recv()

    def run(per_run: int) -> None:
        for _, connection in started:
            connection.send(per_run)
        for _, connection in started:
            connection.recv()

    try:
        yield run
    finally:
        for process, connection in started:
            connection.send(0)
            process.join()


def best_size(data: str, model: str) -> int:
    """Return the rows a run at which ORT is fastest in this process."""
    part = pq.read_table(min(Path(data).glob("*.parquet"))).to_pandas()
    running = one_thread_session(model)
    seconds = {
        n: min(timed(lambda n=n: probabilities(running, part, n)) for _ in range(3)) for n in SIZES
    }
    return min(seconds, key=lambda n: seconds[n])


def contestants(
    data: str, paths: tuple[str, str], out: str, per_run: int
) -> dict[str, Callable[[], Any]]:
    onnx_path, joblib_path = paths
    model = dx.load(onnx_path)

    def write(lazy: dd.DataFrame) -> None:
        lazy.to_parquet(out, write_index=False)

    def write_fused(lazy: dd.DataFrame) -> None:
        lazy.to_parquet(out, write_index=False, compute=False).optimize().compute()

    def ours() -> dd.DataFrame:
        found: dd.DataFrame = model.predict(dd.read_parquet(data), outputs=["probabilities"])
        return found

    def by_hand() -> dd.DataFrame:
        lazy = dd.read_parquet(data)
        return lazy.map_partitions(with_session, onnx_path, per_run, meta=META)

    def sklearn() -> None:
        write(dd.read_parquet(data).map_partitions(with_estimator, joblib_path, meta=META))

    runners: dict[str, Callable[[], Any]] = {
        "ours": lambda: write(ours()),
        "ours, fused": lambda: write_fused(ours()),
        "hand-made": lambda: write(by_hand()),
        "hand-made, fused": lambda: write_fused(by_hand()),
        "scikit-learn": sklearn,
    }
    if importlib.util.find_spec("dask_ml"):
        from dask_ml.wrappers import ParallelPostFit

        fitted = ParallelPostFit(joblib.load(joblib_path))

        def dask_ml() -> None:
            found = fitted.predict_proba(dd.read_parquet(data))
            write(found.astype("float32").to_dask_dataframe(columns=COLUMNS))

        runners["dask-ml"] = dask_ml
    return runners


def read_back(out: str) -> np.ndarray:
    found: np.ndarray = dd.read_parquet(out).compute(scheduler="sync").to_numpy()
    return found


def measure(folder: Path, rows: int, partitions: int, rounds: int) -> dict[str, Any]:
    paths = make_models(folder)
    data = make_data(folder / "rows.parquet", rows, partitions)
    per_run = best_size(data, paths[0])
    out = str(folder / "out.parquet")
    with (
        bare_pair(data, paths[0], out) as limit,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        runners = {"limit": lambda: limit(per_run), **contestants(data, paths, out, per_run)}
        expected = None
        for name, run in runners.items():
            emptied(out, run)()
            found = read_back(out)
            expected = found if expected is None else expected
            # scikit-learn computes in float64, which may put a row on the other side of a split.
            assert np.mean(np.abs(found - expected) > 1e-4) < 1e-3, name
        seconds = alternate({name: emptied(out, run) for name, run in runners.items()}, rounds)
    return {
        "rows": rows,
        "partitions": partitions,
        "limit_rows_per_run": per_run,
        "contestants": against(seconds, "limit"),
    }


def emptied(folder: str, run: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that empties the output folder before each run."""

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
        run()

    return start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        dask.config.set({"onnx.store.directory": f"{name}/store"}),
    ):
        results = measure(Path(name), arguments.rows, arguments.partitions, arguments.rounds)
    print_against_limit(
        f"{results['rows']:,} rows in {results['partitions']} partitions, Parquet in and out; the "
        f"limit at {results['limit_rows_per_run']} rows a run",
        "rows",
        results["rows"],
        results["contestants"],
    )
    if arguments.output:
        write_json(arguments.output, "tabular", results)


if __name__ == "__main__":
    main()
