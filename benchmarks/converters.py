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
import importlib
import importlib.metadata
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS, CHUNK = 23, 9

_NEEDS = {
    "skl2onnx": ("skl2onnx", "sklearn"),
    "xgboost": ("xgboost", "onnxmltools"),
    "lightgbm": ("lightgbm", "onnxmltools"),
    "catboost": ("catboost",),
}
"""Converter to the packages that it needs."""


@dataclass(frozen=True)
class Case:
    """One converted model, with the rows to run it on."""

    converter: str
    name: str
    build: Callable[[], Any]
    """Function that trains and converts, and returns a ModelProto."""
    table: pd.DataFrame
    """Rows; for a model of one matrix all columns are floats."""

    @property
    def is_matrix(self) -> bool:
        """True if the model takes one matrix rather than an input for each column."""
        return all(dtype.kind == "f" for dtype in self.table.dtypes)


def numeric_table(n_features: int = 4, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(ROWS * 4, n_features)).astype(np.float32)
    return pd.DataFrame(values, columns=[f"f{i}" for i in range(n_features)])


def mixed_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    count = ROWS * 4
    return pd.DataFrame(
        {
            "age": rng.normal(40, 12, count).astype(np.float32),
            "visits": rng.integers(0, 9, count),
            "city": rng.choice(["Bern", "Oslo", "Rome"], count),
            "plan": rng.choice(["free", "paid"], count),
        }
    )


def text_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    words = "the cat dog house red green runs sleeps fast slow".split()
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(ROWS * 4)]
    return pd.DataFrame({"text": texts})


def targets(table: pd.DataFrame, classes: int) -> Any:
    return np.random.default_rng(len(table.columns)).integers(0, classes, len(table))


def sklearn_cases() -> Iterator[Case]:
    """Yield estimators and pipelines of scikit-learn, converted by skl2onnx with its defaults."""
    from sklearn import (
        cluster,
        compose,
        decomposition,
        ensemble,
        feature_extraction,
        gaussian_process,
        impute,
        linear_model,
        multioutput,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    logistic = linear_model.LogisticRegression
    classifiers: dict[str, Any] = {
        "LogisticRegression": logistic(),
        "RandomForestClassifier": ensemble.RandomForestClassifier(5, random_state=0),
        "DecisionTreeClassifier": tree.DecisionTreeClassifier(max_depth=3, random_state=0),
        "ExtraTreesClassifier": ensemble.ExtraTreesClassifier(5, random_state=0),
        "GradientBoostingClassifier": ensemble.GradientBoostingClassifier(n_estimators=5),
        "HistGradientBoostingClassifier": ensemble.HistGradientBoostingClassifier(max_iter=5),
        "AdaBoostClassifier": ensemble.AdaBoostClassifier(n_estimators=5, random_state=0),
        "BaggingClassifier": ensemble.BaggingClassifier(n_estimators=3, random_state=0),
        "KNeighborsClassifier": neighbors.KNeighborsClassifier(),
        "GaussianNB": naive_bayes.GaussianNB(),
        "SVC": svm.SVC(random_state=0),
        "SVC(probability)": svm.SVC(probability=True, random_state=0),
        "NuSVC": svm.NuSVC(nu=0.1, random_state=0),
        "LinearSVC": svm.LinearSVC(random_state=0),
        "SGDClassifier": linear_model.SGDClassifier(random_state=0),
        "MLPClassifier": neural_network.MLPClassifier((8,), max_iter=30, random_state=0),
        "GaussianProcessClassifier": gaussian_process.GaussianProcessClassifier(),
        "VotingClassifier": ensemble.VotingClassifier(
            [("a", logistic()), ("b", naive_bayes.GaussianNB())],
            voting="soft",
            flatten_transform=False,
        ),
        "StackingClassifier": ensemble.StackingClassifier(
            [("a", logistic()), ("b", tree.DecisionTreeClassifier(max_depth=2))], cv=3
        ),
        "Imputer+Forest": pipeline.make_pipeline(
            impute.SimpleImputer(), ensemble.RandomForestClassifier(5, random_state=0)
        ),
        "Scaler+Logistic": pipeline.make_pipeline(preprocessing.StandardScaler(), logistic()),
    }
    regressors: dict[str, Any] = {
        "LinearRegression": linear_model.LinearRegression(),
        "RandomForestRegressor": ensemble.RandomForestRegressor(5, random_state=0),
        "GradientBoostingRegressor": ensemble.GradientBoostingRegressor(n_estimators=5),
        "HistGradientBoostingRegressor": ensemble.HistGradientBoostingRegressor(max_iter=5),
        "SVR": svm.SVR(),
        "KNeighborsRegressor": neighbors.KNeighborsRegressor(),
        "MLPRegressor": neural_network.MLPRegressor(
            hidden_layer_sizes=(8,), max_iter=30, random_state=0
        ),
        "GaussianProcessRegressor": gaussian_process.GaussianProcessRegressor(),
        "VotingRegressor": ensemble.VotingRegressor(
            [("a", linear_model.LinearRegression()), ("b", tree.DecisionTreeRegressor(max_depth=2))]
        ),
    }
    transformers: dict[str, Any] = {
        "StandardScaler": preprocessing.StandardScaler(),
        "MinMaxScaler": preprocessing.MinMaxScaler(),
        "Normalizer": preprocessing.Normalizer(),
        "Binarizer": preprocessing.Binarizer(),
        "PolynomialFeatures": preprocessing.PolynomialFeatures(),
        "SimpleImputer": impute.SimpleImputer(),
        "PCA": decomposition.PCA(2),
        "TruncatedSVD": decomposition.TruncatedSVD(2),
        "KMeans": cluster.KMeans(3, n_init=1, random_state=0),
        "IsolationForest": ensemble.IsolationForest(n_estimators=5, random_state=0),
        "LocalOutlierFactor": neighbors.LocalOutlierFactor(novelty=True),
        "OneClassSVM": svm.OneClassSVM(),
    }
    table = numeric_table()
    x = table.to_numpy()
    for classes in (2, 3):
        y = targets(table, classes)
        for name, estimator in classifiers.items():
            yield _sklearn(f"{name}, {classes} classes", estimator, x, y, table)
    names = np.array(["low", "mid", "high"])[targets(table, 3)]
    for name in ("LogisticRegression", "RandomForestClassifier", "SVC(probability)"):
        yield _sklearn(f"{name}, 3 strings", classifiers[name], x, names, table)
        columns = {"zipmap": "columns"}
        yield _sklearn(f"{name}, zipmap columns", classifiers[name], x, names, table, columns)
    yield _sklearn(
        "RandomForestClassifier, no zipmap",
        classifiers["RandomForestClassifier"],
        *(x, names, table, {"zipmap": False}),
    )
    both = np.stack([targets(table, 2), targets(table, 3)], axis=1)
    yield _sklearn(
        "MultiOutputClassifier", multioutput.MultiOutputClassifier(logistic()), x, both, table
    )
    yield _sklearn(
        "RandomForestClassifier, 2 targets",
        *(classifiers["RandomForestClassifier"], x, both, table, {"zipmap": False}),
    )
    target = (x @ np.arange(4)).astype(np.float32)
    for name, estimator in regressors.items():
        yield _sklearn(name, estimator, x, target, table)
    for name in ("LinearRegression", "RandomForestRegressor", "KNeighborsRegressor"):
        yield _sklearn(f"{name}, 2 targets", regressors[name], x, x[:, :2], table)
    for name, estimator in transformers.items():
        yield _sklearn(name, estimator, x, None, table)
    mixed = mixed_table()
    encoder = compose.ColumnTransformer(
        [
            ("numbers", preprocessing.StandardScaler(), ["age", "visits"]),
            ("names", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["city", "plan"]),
        ]
    )
    y = targets(mixed, 3)
    yield _sklearn("ColumnTransformer", encoder, mixed, None, mixed)
    for name, last in (("Logistic", logistic()), ("Forest", classifiers["RandomForestClassifier"])):
        yield _sklearn(
            f"ColumnTransformer+{name}", pipeline.make_pipeline(encoder, last), mixed, y, mixed
        )
    ordinal = compose.ColumnTransformer(
        [("names", preprocessing.OrdinalEncoder(), ["city", "plan"])], remainder="passthrough"
    )
    yield _sklearn("OrdinalEncoder", ordinal, mixed, None, mixed)
    text = text_table()
    for name, vectorizer in (
        ("TfidfVectorizer", feature_extraction.text.TfidfVectorizer()),
        ("CountVectorizer", feature_extraction.text.CountVectorizer()),
    ):
        words = text["text"].to_numpy()
        # By default the converter asks for the locale en_US, which slim hosts lack.
        options = {type(vectorizer): {"locale": "C"}}
        yield _sklearn(name, vectorizer, words, None, text, options)
        both = pipeline.make_pipeline(vectorizer, logistic())
        yield _sklearn(f"{name}+Logistic", both, words, targets(text, 2), text, options)


def _sklearn(
    name: str,
    estimator: Any,
    x: Any,
    y: Any,
    table: pd.DataFrame,
    options: Mapping[str, Any] | None = None,
) -> Case:
    def build() -> Any:
        import sklearn.base
        from skl2onnx import convert_sklearn
        from skl2onnx.common import data_types

        trained = sklearn.base.clone(estimator).fit(x, y)
        kinds = {"f": data_types.FloatTensorType, "i": data_types.Int64TensorType}
        if isinstance(x, pd.DataFrame):
            inputs = [
                (str(label), kinds.get(x[label].dtype.kind, data_types.StringTensorType)([None, 1]))
                for label in x.columns
            ]
        elif x.ndim == 1:
            inputs = [("text", data_types.StringTensorType([None, 1]))]
        else:
            inputs = [("x", data_types.FloatTensorType([None, x.shape[1]]))]
        # The converter of IsolationForest asks for version 3 of ai.onnx.ml.
        opset = {"": 18, "ai.onnx.ml": 3} if name == "IsolationForest" else None
        return convert_sklearn(trained, initial_types=inputs, options=options, target_opset=opset)

    return Case("skl2onnx", name, build, table.iloc[:ROWS])


def _boosted(converter: str, models: Mapping[str, tuple[Any, Any]]) -> Iterator[Case]:
    """Yield models that are trained on the numeric table and converted by onnxmltools."""
    table = numeric_table()

    def builder(model: Any, y: Any) -> Callable[[], Any]:
        def build() -> Any:
            import onnxmltools
            from onnxmltools.convert.common.data_types import FloatTensorType

            convert = getattr(onnxmltools, f"convert_{converter}")
            trained = model.fit(table.to_numpy(), y)
            return convert(trained, initial_types=[("input", FloatTensorType([None, 4]))])

        return build

    for name, (model, y) in models.items():
        yield Case(converter, name, builder(model, y), table.iloc[:ROWS])


def xgboost_cases() -> Iterator[Case]:
    """Yield default models of XGBoost."""
    import xgboost

    table = numeric_table()
    x, small = table.to_numpy(), {"n_estimators": 5}
    models = {
        "XGBRegressor": (xgboost.XGBRegressor(**small), x[:, 0]),
        "XGBRegressor, 2 targets": (xgboost.XGBRegressor(**small), x[:, :2]),
        "XGBClassifier, 2 classes": (xgboost.XGBClassifier(**small), targets(table, 2)),
        "XGBClassifier, 3 classes": (xgboost.XGBClassifier(**small), targets(table, 3)),
        "XGBRFRegressor": (xgboost.XGBRFRegressor(**small), x[:, 0]),
        "XGBRFClassifier, 3 classes": (xgboost.XGBRFClassifier(**small), targets(table, 3)),
        "XGBRanker": (_Ranker(xgboost.XGBRanker(**small)), targets(table, 3)),
    }
    yield from _boosted("xgboost", models)


class _Ranker:
    """A ranker whose rows are all of one query."""

    def __init__(self, ranker: Any) -> None:
        self.ranker = ranker

    def fit(self, x: Any, y: Any) -> Any:
        return self.ranker.fit(x, y, group=[len(x)])


def lightgbm_cases() -> Iterator[Case]:
    """Yield default models of LightGBM."""
    import lightgbm

    table = numeric_table()
    x, small = table.to_numpy(), {"n_estimators": 5, "verbose": -1, "min_child_samples": 5}
    names = np.array(["low", "mid", "high"])[targets(table, 3)]
    models = {
        "LGBMRegressor": (lightgbm.LGBMRegressor(**small), x[:, 0]),
        "LGBMClassifier, 2 classes": (lightgbm.LGBMClassifier(**small), targets(table, 2)),
        "LGBMClassifier, 3 classes": (lightgbm.LGBMClassifier(**small), targets(table, 3)),
        "LGBMClassifier, 3 strings": (lightgbm.LGBMClassifier(**small), names),
        "LGBMRanker": (_Ranker(lightgbm.LGBMRanker(**small)), targets(table, 3)),
    }
    yield from _boosted("lightgbm", models)


def catboost_cases() -> Iterator[Case]:
    """Yield default models of CatBoost, saved by itself."""
    import catboost
    import onnx

    table = numeric_table()
    small = {"iterations": 5, "verbose": 0, "allow_writing_files": False}
    names = np.array(["low", "mid", "high"])[targets(table, 3)]

    def builder(model: Any, y: Any) -> Callable[[], Any]:
        def build() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "model.onnx")
                model.fit(table.to_numpy(), y).save_model(path, format="onnx")
                return onnx.load(path)

        return build

    regressor, classifier = catboost.CatBoostRegressor, catboost.CatBoostClassifier
    for name, model, y in (
        ("CatBoostRegressor", regressor(**small), table.to_numpy()[:, 0]),
        (
            "CatBoostRegressor, Poisson",
            regressor(loss_function="Poisson", **small),
            targets(table, 9),
        ),
        ("CatBoostClassifier, 2 classes", classifier(**small), targets(table, 2)),
        ("CatBoostClassifier, 3 classes", classifier(**small), targets(table, 3)),
        ("CatBoostClassifier, 3 strings", classifier(**small), names),
    ):
        yield Case("catboost", name, builder(model, y), table.iloc[:ROWS])


CASES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "skl2onnx": sklearn_cases,
    "xgboost": xgboost_cases,
    "lightgbm": lightgbm_cases,
    "catboost": catboost_cases,
}
"""Converter to its cases."""


# Faces: each takes a model, the rows and a scheduler's address, and returns values by output as
# `as_matrices` makes them.


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

_protos: dict[int, Any] = {}
"""Converted models of this run, by the identity of their case."""


def case_proto(case: Case) -> Any:
    """Return the converted model of a case; trained once."""
    if id(case) not in _protos:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _protos[id(case)] = case.build()
    return _protos[id(case)]


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


def missing(converter: str) -> list[str]:
    """Return the packages that a converter needs and this environment lacks."""
    absent = []
    for package in _NEEDS[converter]:
        try:
            importlib.import_module(package)
        except ImportError:
            absent.append(package)
    return absent


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
            versions |= {p: importlib.metadata.version(_dist(p)) for p in _NEEDS[converter]}
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
