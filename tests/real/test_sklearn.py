"""Predictions on tables equal scikit-learn's, through Parquet and back."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn import datasets
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dask_onnx as dx

pytestmark = pytest.mark.real


def bunch(name: str):
    data = getattr(datasets, f"load_{name}")(as_frame=True)
    return data.data.astype(np.float32), data.target


CLASSIFIERS = {
    "forest": lambda: RandomForestClassifier(20, random_state=0),
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
}


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("labels", ["strings", "integers"])
@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_classification_equals_scikit_learn(tmp_path, name, labels, classifier, zipmap):
    table, target = bunch(name)
    if labels == "strings":
        target = target.map(lambda label: f"class {label}")
    trained = CLASSIFIERS[classifier]().fit(table.to_numpy(), target)
    model = dx.load(to_onnx(trained, table.to_numpy()[:1], options={"zipmap": zipmap}))
    dd.from_pandas(table, npartitions=3).to_parquet(tmp_path / "in")
    lazy = model.predict(dd.read_parquet(tmp_path / "in"))
    lazy.to_parquet(tmp_path / "out")
    found = dd.read_parquet(tmp_path / "out").compute()
    label, *scores = found.columns
    assert (found[label].to_numpy() == trained.predict(table.to_numpy())).all()
    assert [s.rpartition("_")[2] for s in scores] == [str(c) for c in trained.classes_]
    expected = trained.predict_proba(table.to_numpy())
    np.testing.assert_allclose(found[scores].to_numpy(), expected, atol=2e-5)


def test_regression_equals_scikit_learn(tmp_path):
    table, target = bunch("diabetes")
    trained = GradientBoostingRegressor(random_state=0).fit(table.to_numpy(), target)
    model = dx.load(to_onnx(trained, table.to_numpy()[:1]))
    found = model.predict(dd.from_pandas(table, npartitions=4)).compute()
    np.testing.assert_allclose(
        found.iloc[:, 0], trained.predict(table.to_numpy()), rtol=1e-5, atol=1e-3
    )
