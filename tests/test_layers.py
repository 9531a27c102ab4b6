"""Every module has a layer, and imports only from below it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dask_onnx

ROOT = Path(dask_onnx.__file__).parent

LAYERS = {
    "errors": 0,
    "value_types": 0.2,
    "devices": 0.7,
    "forms": 0.9,
    "runtime.own": 1.5,
    "runtime.canonical": 1.5,
    "runtime.reference": 1.6,
    "runtime.foreign": 1.5,
    "runtime.wrong": 1.5,
    "runtime.probe": 2.7,
    "backend": 9,
    "specs": 0.1,
    "config": 0,
    "files": 0.3,
    "wire": 0.3,
    "weights": 0.5,
    "normalise": 0.6,
    "onnx_model": 1,
    "analysis.graph": 2,
    "analysis.shapes": 2.1,
    "analysis.operands": 2.05,
    "analysis.elementwise": 2.05,
    "analysis.attention": 2.06,
    "analysis.products": 2.06,
    "analysis.flops": 2.07,
    "analysis.bodies": 2.11,
    "analysis.cost": 2.12,
    "analysis.growth": 2.13,
    "analysis.ml_shapes": 2.05,
    "analysis.known_branches": 2.05,
    "analysis.contrib_parts": 2.06,
    "analysis.contrib_images": 2.07,
    "analysis.contrib_attention": 2.07,
    "analysis.contrib_operators": 2.08,
    "analysis.contrib_shapes": 2.09,
    "io.georeference": 6.8,
    "io.raster_axes": 6.8,
    "io.tiff": 6.9,
    "io.rasters": 7.1,
    "io.raster_sinks": 7.1,
    "io.raster_writing": 7.2,
    "analysis.randomness": 2.05,
    "analysis.row_candidates": 2.05,
    "analysis.row_probes": 2.11,
    "analysis.batch": 2.2,
    "analysis.sample_inputs": 2.11,
    "analysis.freeing": 2.21,
    "analysis.branches": 2.1,
    "analysis.cuts": 2.2,
    "analysis.rows": 2.25,
    "analysis.report": 2.3,
    "runtime.store": 1.5,
    "runtime.asking": 1.4,
    "runtime.seals": 1.4,
    "runtime.elsewhere": 1.4,
    "runtime.cores": 1.5,
    "runtime.upkeep": 1.6,
    "runtime.supply": 1.7,
    "runtime.runs": 1.5,
    "runtime.session": 2.5,
    "runtime.memory": 2.6,
    "runtime.prepack": 2.6,
    "runtime.codec": 1.4,
    "runtime.transfer": 1.6,
    "runtime.tune": 2.7,
    "runtime.profile": 2.7,
    "runtime.calibrate": 2.7,
    "runtime.treadmill": 2.6,
    "pace": 3.5,
    "runtime.kernel": 3,
    "planning.stages": 3,
    "metering": 0,
    "links": 0.5,
    "measuring": 3.6,
    "planning.measured": 3.1,
    "planning.memory": 3.6,
    "planning.schedule": 3,
    "planning.options": 2.5,
    "planning.timeline": 3.1,
    "planning.check": 4,
    "planning.cutting": 4,
    "planning.footprint": 4.1,
    "planning.borders": 3,
    "planning.pipeline": 4.2,
    "planning.branches": 4.1,
    "planning.annotations": 4.1,
    "planning.partition": 4.3,
    "planning.cluster": 3,
    "planning.choose": 4.9,
    "planning.recipe": 5,
    "planning.explain": 3.5,
    "planning.lettering": 3,
    "planning.layout": 3.5,
    "planning.picture": 5.1,
    "planning.page": 5.2,
    "planning.compare": 5.1,
    "lanes": 0.2,
    "scheduling": 0.5,
    "placement": 5,
    "fitting": 5.1,
    "tasks": 0.1,
    "gates": 5.5,
    "lower": 6,
    "delivery": 6,
    "drift": 6,
    "collections.options": 6.4,
    "collections.schedulers": 6.4,
    "collections.request": 6.5,
    "collections.bad_rows": 6.4,
    "collections.texts": 6.4,
    "collections.text_columns": 6.5,
    "collections.parts": 6.5,
    "collections.ragged": 6.5,
    "collections.kinds": 6.5,
    "collections.columns": 6.6,
    "collections.frames": 6.6,
    "collections.here": 6.7,
    "collections.dataframe": 7.1,
    "collections.bag": 7.1,
    "collections.xarray": 7.1,
    "collections.text_encoder": 7.2,
    "collections.text_series": 7.3,
    "collections.text": 8.1,
    "analysis.labels": 2.1,
    "loading": 8.1,
    "collections.context": 6.6,
    "model_facts": 6.6,
    "summary": 6.65,
    "node_times": 6.7,
    "explaining": 6.7,
    "collections.array": 7,
    "collections.eager": 7,
    "collections.delayed": 7.1,
    "io.sources": 7,
    "io.sinks": 7,
    "io.pipeline": 7.1,
    "plan": 7.2,
    "planner": 7.3,
    "rowwise": 7.4,
    "model": 8,
    "verify": 8.1,
    "cli": 9,
    "cli.parameters": 9.1,
    "cli.cluster": 9.1,
    "cli.wording": 9.05,
    "cli.plan_json": 9.1,
    "cli.plan_request": 9.15,
    "cli.inspect": 9.2,
    "cli.plan": 9.2,
    "cli.predict": 9.2,
    "cli.table_request": 9.1,
    "cli.csv_text": 9.1,
    "cli.tables": 9.15,
    "cli.rasters": 9.15,
    "cli.store": 9.2,
    "__main__": 9.3,
    "": 9.9,
}
FOLDERS = {
    "analysis.axes": 2.13,
    "analysis.opening": 2.196,
    "sharding": 7.25,
    "tiles": 8.5,
}
"""Folders that are one layer: their modules import each other without circles."""
EMPTY = {"analysis", "runtime", "planning", "collections", "io"}
"""Rooms whose `__init__` has a docstring and nothing else."""


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Names of dask_onnx's modules that a file imports, wherever in it."""
    known, found = modules(), set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(
            "dask_onnx"
        ):
            base = (statement.module or "").removeprefix("dask_onnx").removeprefix(".")
            for alias in statement.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in known else base)
        elif isinstance(statement, ast.Import):
            found |= {
                alias.name.removeprefix("dask_onnx").removeprefix(".")
                for alias in statement.names
                if alias.name.partition(".")[0] == "dask_onnx"
            }
    return found


def third_party(path: Path) -> set[str]:
    found = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add((statement.module or "").partition(".")[0])
    return found


def folder_of(name: str) -> str | None:
    """The folder of `FOLDERS` that a module is in, or is."""
    return next((f for f in FOLDERS if name == f or name.startswith(f"{f}.")), None)


def layer_of(name: str) -> float:
    folder = folder_of(name)
    return LAYERS[name] if folder is None else FOLDERS[folder]


def test_every_module_has_a_layer():
    alone = {name for name in modules() if folder_of(name) is None}
    assert alone == set(LAYERS) | EMPTY


@pytest.mark.parametrize("name", sorted(set(modules()) - EMPTY))
def test_imports_go_down(name):
    folder = folder_of(name)
    for other in imports(modules()[name]):
        if folder is None or folder_of(other) != folder:
            assert layer_of(other) < layer_of(name), f"{name} imports {other}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_modules_of_a_folder_import_each_other_without_circles(folder):
    inside = [name for name in modules() if folder_of(name) == folder]
    needs = {name: {o for o in imports(modules()[name]) if o in inside} for name in inside}
    assert set(TopologicalSorter(needs).static_order()) >= set(inside)


def test_only_lowering_and_what_is_above_it_know_both_plans_and_runtime():
    for name, path in modules().items():
        rooms = {other.partition(".")[0] for other in imports(path)}
        if name.startswith("runtime"):
            assert not rooms & {"planning", "collections", "lower"}, name
        if name.startswith("planning"):
            assert not rooms & {"runtime", "collections", "lower"}, name


def test_only_the_session_module_imports_onnxruntime():
    users = {name for name, path in modules().items() if "onnxruntime" in third_party(path)}
    assert users == {"runtime.session"}
