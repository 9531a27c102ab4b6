"""Series for Prometheus, made of Dask's fine performance metrics, and their documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dask_onnx.cluster
from dask_onnx.cluster.metric_families import (
    BOUNDS,
    FROM_DIGESTS,
    OF_SCHEDULER,
    OF_WORKER,
    Histogram,
    Series,
    full_names,
    series_of_digests,
    without_model,
)
from dask_onnx.cluster.stage_names import ShownStage

SCHEDULER, WORKER = "dask_onnx_scheduler_", "dask_onnx_worker_"
DET = ShownStage("det", "detector")
DIGESTS = {
    ("execute", DET, "onnx-run", "seconds"): 2.0,
    ("execute", ShownStage("scan-sum", "scan"), "onnx-run", "seconds"): 1.0,
    ("execute", DET, "onnx-rows", "count"): 8,
    ("execute", DET, "onnx-error-RunError", "count"): 1,
    ("execute", DET, "onnx-input", "bytes"): 64,
    ("execute", DET, "thread-cpu", "seconds"): 9.0,
    ("get-data", "onnx-encode", "seconds"): 0.5,
    ("gather-dep", "onnx-decode", "seconds"): 0.25,
    ("get-data", "onnx-wire", "bytes"): 10,
    ("gather-dep", "onnx-wire", "bytes"): 10,
    ("get-data", "onnx-packed", "count"): 3,
    "latency": 1.0,
}


def test_series_of_a_scheduler_name_stage_and_model():
    assert set(series_of_digests(DIGESTS.items())) == {
        Series("phase_seconds", ("det", "detector", "run"), 2.0),
        Series("phase_seconds", ("scan-sum", "scan", "run"), 1.0),
        Series("rows", ("det", "detector"), 8),
        Series("errors", ("det", "detector", "RunError"), 1),
        Series("input_bytes", ("det", "detector"), 64),
        Series("coding_seconds", ("encode",), 0.5),
        Series("coding_seconds", ("decode",), 0.25),
        Series("transfer_bytes", ("wire",), 10),
        Series("transfer_batches", ("true",), 3),
    }


def test_series_of_a_worker_add_up_its_spans():
    digests = {
        ("execute", span, "det", "onnx-run", "seconds"): seconds
        for span, seconds in (("one", 1.0), ("two", 2.0), (None, 4.0))
    }
    assert series_of_digests(digests.items()) == [Series("phase_seconds", ("det", "run"), 7.0)]


def test_series_have_as_many_labels_as_their_family():
    labels = {each.name: each.labels for each in FROM_DIGESTS}
    for each in series_of_digests(DIGESTS.items()):
        assert len(each.labels) == len(labels[each.family])
    labels = {each.name: each.labels for each in without_model(FROM_DIGESTS)}
    assert labels["phase_seconds"] == ("stage", "phase")


def test_buckets_of_a_histogram_hold_all_values_up_to_their_bound():
    histogram = Histogram()
    for seconds in (0.0005, 0.001, 0.002, 1000.0):
        histogram.add(seconds)
    buckets = dict(histogram.buckets())
    assert len(buckets) == len(BOUNDS) + 1
    assert (buckets["0.001"], buckets["0.0025"], buckets["300.0"]) == (2, 3, 3)
    assert buckets["+Inf"] == 4 and histogram.total == 1000.0035


def names() -> set[str]:
    return {
        *full_names((*FROM_DIGESTS, *OF_SCHEDULER), SCHEDULER),
        *full_names((*FROM_DIGESTS, *OF_WORKER), WORKER),
    }


def test_the_documentation_names_all_metrics_with_their_labels():
    text = (Path(__file__).parents[2] / "MONITORING.md").read_text()
    rows = dict(re.findall(r"^\| `(dask_onnx_\w+)` \|([^|]*)\|", text, re.MULTILINE))
    assert set(rows) == names()
    for family in (*FROM_DIGESTS, *OF_SCHEDULER):
        (name,) = full_names((family,), SCHEDULER)
        assert tuple(filter(None, rows[name].strip().split(", "))) == family.labels


def test_the_dashboard_for_grafana_asks_for_metrics_that_exist():
    path = Path(dask_onnx.cluster.__path__[0]) / "grafana_dashboard.json"
    dashboard = json.loads(path.read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    found = {name.removesuffix("_bucket") for name in re.findall(r"dask_onnx_\w+", asked)}
    assert found and found <= names()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
