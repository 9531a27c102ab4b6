"""Models that converters make with their defaults, each with the rows to run it on."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROWS = 23
"""Rows of each case."""

NEEDS = {
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


_protos: dict[int, Any] = {}
"""Converted models of this run, by the identity of their case."""


def case_proto(case: Case) -> Any:
    """Return the converted model of a case; trained once."""
    if id(case) not in _protos:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _protos[id(case)] = case.build()
    return _protos[id(case)]


def missing(converter: str) -> list[str]:
    """Return the packages that a converter needs and this environment lacks."""
    absent = []
    for package in NEEDS[converter]:
        try:
            importlib.import_module(package)
        except ImportError:
            absent.append(package)
    return absent
