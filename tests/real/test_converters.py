"""Models of skl2onnx, converted with its defaults, give the same on every collection as in ORT.

The cases and the comparison are those of ``benchmarks/converters.py``, which runs more models, and
those of other converters, in an environment that has them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.real,
    # Of converters and of scikit-learn on such small data sets.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:sklearn.exceptions.ConvergenceWarning"),
]

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
FACES = ("numpy", "batches", "array", "pandas", "frame", "bag", "delayed")
QUICK = (
    "RandomForestClassifier, 3 classes",
    "LogisticRegression, 2 classes",
    "LogisticRegression, zipmap columns",
    "SVC(probability), 3 strings",
    "SVC, 3 classes",
    "KNeighborsClassifier, 3 classes",
    "StackingClassifier, 3 classes",
    "Imputer+Forest, 3 classes",
    "MultiOutputClassifier",
    "RandomForestClassifier, 2 targets",
    "GaussianProcessRegressor",
    "IsolationForest",
    "KMeans",
    "PCA",
    "ColumnTransformer+Forest",
    "TfidfVectorizer+Logistic",
)
"""Cases of the gate; the others are slow tests."""
NOT_CONVERTED = (
    "GaussianProcessClassifier, 2 classes",
    "GaussianProcessClassifier, 3 classes",
    "HistGradientBoostingClassifier, 2 classes",
    "HistGradientBoostingClassifier, 3 classes",
    "HistGradientBoostingRegressor",
)
"""Cases that the installed skl2onnx refuses, or for which ONNX Runtime has no kernel."""


def import_modules(*names):
    sys.path.insert(0, BENCHMARKS)
    try:
        return tuple(map(importlib.import_module, names))
    finally:
        sys.path.remove(BENCHMARKS)


cases, faces = import_modules("converter_cases", "converter_faces")
CASES = {case.name: case for case in cases.sklearn_cases()}


def compare(name):
    case = CASES[name]
    wanted = faces.expected(cases.case_proto(case), case)
    found = {face: faces.check(case, face, "", wanted) for face in FACES}
    assert found == dict.fromkeys(FACES, "ok")


@pytest.mark.parametrize("name", QUICK)
def test_every_collection_is_as_onnx_runtime(name):
    compare(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - {*QUICK, *NOT_CONVERTED}))
def test_every_collection_is_as_onnx_runtime_with_more_models(name):
    compare(name)
