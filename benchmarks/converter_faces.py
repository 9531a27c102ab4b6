"""Collections and files as faces of the library, and the comparison of their results.

Each face takes a model, a case and a scheduler's address, and returns values by output as
`as_matrices` makes them, or the table of all outputs as "table".
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from converter_cases import Case, case_proto

CHUNK = 9
"""Rows of a chunk of an array."""


def feeds_of(case: Case, inputs: Any) -> Any:
    """Return the rows as arrays: one matrix, or a dict of one column for each input."""
    if case.is_matrix:
        return case.table.to_numpy()
    return {
        spec.name: case.table[[spec.name]].to_numpy(object if spec.dtype == object else spec.dtype)
        for spec in inputs
    }


def as_matrices(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return maps as matrices by class, and lists of arrays as their items."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found[name] = np.array([list(row.values()) for row in value], np.float32)
        elif isinstance(value, list):
            found.update({f"{name}_{i}": np.asarray(item) for i, item in enumerate(value)})
        else:
            found[name] = np.asarray(value)
    return found


def expected(proto: Any, case: Case) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x = feeds_of(case, _specs(proto))
    names = [value.name for value in session.get_outputs()]
    feeds = x if isinstance(x, dict) else {session.get_inputs()[0].name: x}
    return as_matrices(dict(zip(names, session.run(names, feeds), strict=True)))


def _specs(proto: Any) -> Any:
    import dask_onnx as dx

    return dx.load(proto).inputs


def by_name(model: Any, result: Any) -> dict[str, Any]:
    return result if isinstance(result, dict) else {model.outputs[0].name: result}


def on_numpy(model: Any, case: Case, _: str) -> dict[str, Any]:
    return as_matrices(by_name(model, model.predict(feeds_of(case, model.inputs))))


def on_batches(model: Any, case: Case, _: str) -> dict[str, Any]:
    x = feeds_of(case, model.inputs)
    return as_matrices(by_name(model, model.predict(x, batch_size=7)))


def on_array(model: Any, case: Case, _: str) -> dict[str, Any]:
    import dask.array as da

    x = feeds_of(case, model.inputs)

    def lazy(array: Any) -> Any:
        return da.from_array(array, chunks=(CHUNK, -1))

    given = {k: lazy(v) for k, v in x.items()} if isinstance(x, dict) else lazy(x)
    found: dict[str, Any] = {}
    for name, value in by_name(model, model.predict(given)).items():
        parts = value if isinstance(value, list) else [value]
        done = []
        for part in parts:
            result = part.compute()
            assert result.dtype == part.dtype == part._meta.dtype, (result.dtype, part.dtype)
            assert result.shape == part.shape, (result.shape, part.shape)
            assert result.ndim == part._meta.ndim
            if result.dtype.kind == "f":
                assert np.allclose((part * 2 + 1).compute(), result * 2 + 1, equal_nan=True)
            done.append(result)
        found[name] = done if isinstance(value, list) else done[0]
    return as_matrices(found)


def from_columns(model: Any, table: pd.DataFrame, names: Any) -> dict[str, Any]:
    """Return the columns of a table of predictions as one matrix for each output."""
    found: dict[str, Any] = {}
    left = list(table.columns)
    for name in sorted(names, key=len, reverse=True):
        own = [c for c in left if c == name or str(c).startswith(f"{name}_")]
        left = [c for c in left if c not in own]
        columns = [table[c].to_numpy() for c in own]
        found[name] = np.stack(columns, axis=1) if len(columns) > 1 else columns[0]
    assert not left, left
    return found


def on_pandas(model: Any, case: Case, _: str) -> dict[str, Any]:
    return {"table": model.predict(case.table)}


def on_dask_frame(model: Any, case: Case, _: str) -> dict[str, Any]:
    import dask.dataframe as dd

    lazy = model.predict(dd.from_pandas(case.table, npartitions=3))
    done = lazy.compute()
    assert list(done.dtypes) == list(lazy.dtypes) == list(lazy._meta.dtypes)
    return {"table": done}


def on_bag(model: Any, case: Case, _: str) -> dict[str, Any]:
    import dask.bag as db

    x = feeds_of(case, model.inputs)
    if isinstance(x, dict):
        rows = [{k: v[i] for k, v in x.items()} for i in range(len(case.table))]
    else:
        rows = list(x)
    found = model.predict(db.from_sequence(rows, npartitions=3)).compute(scheduler="sync")
    found = [by_name(model, row) for row in found]
    values: dict[str, Any] = {}
    for name in found[0]:
        column = [row[name] for row in found]
        if isinstance(column[0], list):
            values[name] = [np.stack(parts) for parts in zip(*column, strict=True)]
        else:
            values[name] = column if isinstance(column[0], dict) else np.stack(column)
    return as_matrices(values)


def on_delayed(model: Any, case: Case, _: str) -> dict[str, Any]:
    import dask

    x = feeds_of(case, model.inputs)
    given = {k: dask.delayed(v) for k, v in x.items()} if isinstance(x, dict) else dask.delayed(x)
    found = dask.compute(by_name(model, model.predict(given)))[0]
    return as_matrices(found)


def _on_files(suffix: str, output: str) -> Callable[[Any, Case, str], dict[str, Any]]:
    def run(model: Any, case: Case, address: str) -> dict[str, Any]:
        from click.testing import CliRunner

        from dask_onnx.cli import main

        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"in{suffix}", Path(folder) / f"out{output}"
            path = Path(folder) / "model.onnx"
            path.write_bytes(case_proto(case).SerializeToString())
            if suffix == ".csv":
                case.table.to_csv(source, index=False)
            elif suffix == ".parquet":
                case.table.to_parquet(source)
            else:
                np.save(source, case.table.to_numpy())
            options = ["--scheduler", address]
            if suffix != ".npy":
                _invoke(CliRunner(), main, ["predict", path, source, target, *options])
                return _read(target)
            found: dict[str, Any] = {}
            for spec in model.outputs:
                # .npy holds one array, and no strings.
                is_array = spec.dtype is not None and spec.dtype != object
                one = target.with_name(f"{spec.name}{'.npy' if is_array else '.parquet'}")
                more = [*options, "--outputs", spec.name]
                _invoke(CliRunner(), main, ["predict", path, source, one, *more])
                if is_array:
                    found[spec.name] = np.load(one)
                else:
                    table = _read(one)["table"]
                    found |= {name: np.array(list(table[name])) for name in table.columns}
            return found

    return run


def _invoke(runner: Any, main: Any, arguments: list[Any]) -> None:
    done = runner.invoke(main, list(map(str, arguments)))
    if done.exit_code:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(next((line for line in lines if line.startswith("error")), lines[-1]))


def _read(target: Path) -> dict[str, Any]:
    import dask.dataframe as dd

    if target.suffix == ".csv":
        return {"table": dd.read_csv(target / "*.csv").compute()}
    return {"table": dd.read_parquet(target).compute()}


FACES: Mapping[str, Callable[[Any, Case, str], dict[str, Any]]] = {
    "numpy": on_numpy,
    "batches": on_batches,
    "array": on_array,
    "pandas": on_pandas,
    "frame": on_dask_frame,
    "bag": on_bag,
    "delayed": on_delayed,
    "npy": _on_files(".npy", ".npy"),
    "csv": _on_files(".csv", ".csv"),
    "parquet": _on_files(".parquet", ".parquet"),
}
"""Name of a face to the function that runs a model through it."""


def check(case: Case, face: str, address: str, wanted: Mapping[str, Any]) -> str:
    """Return "ok", "-" or what went wrong."""
    import dask_onnx as dx

    if face == "npy" and not case.is_matrix:
        return "-"
    try:
        model = dx.load(case_proto(case))
        found = FACES[face](model, case, address)
        if "table" in found:
            found = from_columns(model, found["table"], wanted)
        compare(found, wanted)
    except Exception as error:  # every failure is a cell of the table
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "ok"


def compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if results differ by more than the rounding of float32."""
    assert set(found) == set(wanted), (sorted(found), sorted(wanted))
    for name, value in wanted.items():
        got = np.asarray(found[name])
        if got.ndim == 1 and value.ndim > 1 and isinstance(got[0], str):  # a list in a .csv
            got = np.array([json.loads(cell) for cell in got])
        if got.dtype == object and got.ndim == 1 and got.size and np.ndim(got[0]):
            got = np.stack([np.array(list(row)) for row in got])
        if value.ndim == 3 and len(got) == value.shape[1] != value.shape[0]:
            value = np.moveaxis(value, 1, 0)  # tables and bags have rows first
        if got.dtype == object and got.ndim == 2 and np.ndim(got[0, 0]):
            got = np.array([[np.asarray(list(cell)) for cell in row] for row in got])
        assert len(got) == len(value), (name, got.shape, value.shape)
        got = got.reshape(value.shape)
        if value.dtype.kind in "OUS":
            assert (got.astype(str) == value.astype(str)).all(), name
        else:
            np.testing.assert_allclose(got.astype(float), value.astype(float), 1e-5, 1e-5)
