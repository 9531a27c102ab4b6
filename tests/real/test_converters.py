"""Models of skl2onnx, converted with its defaults, give the same on every collection as in ORT.

The cases and the comparison are those of ``benchmarks/converters.py``, which runs more models, and
those of other converters, in an environment that has them.
"""

from __future__ import annotations

import importlib.util
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

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "converters.py"
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


def load_script():
    spec = importlib.util.spec_from_file_location("converters_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


converters = load_script()
CASES = {case.name: case for case in converters.sklearn_cases()}


def compare(name):
    case = CASES[name]
    wanted = converters.expected(converters.case_proto(case), case)
    found = {face: converters.check(case, face, "", wanted) for face in FACES}
    assert found == dict.fromkeys(FACES, "ok")


@pytest.mark.parametrize("name", QUICK)
def test_every_collection_is_as_onnx_runtime(name):
    compare(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - {*QUICK, *NOT_CONVERTED}))
def test_every_collection_is_as_onnx_runtime_with_more_models(name):
    compare(name)
