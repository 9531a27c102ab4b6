"""Places that unpickle are those that SECURITY.md lists, and files of others are not among them."""

from __future__ import annotations

import ast
import functools
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import dask
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import dense_model, layers_model
from click.testing import CliRunner

import dask_onnx as dx
from dask_onnx.cli import main
from dask_onnx.io.input_formats import open_source
from dask_onnx.store.weight_store import Store

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dask_onnx"
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
WORDS = re.compile(
    r"\b(pickle|cloudpickle|dill|joblib|shelve|marshal|deserialize|loads|eval|exec|__import__|yaml"
    r"|read_pickle|np\.load|read_array|system)\b|(?<!re\.)\bcompile\("
)
CODE_RUNNERS = {"eval", "exec", "compile", "__import__"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Return each call by its dotted name, also those in programs that are kept as text."""
    found = []
    for each in ast.walk(tree):
        if isinstance(each, ast.Call):
            found.append((ast.unparse(each.func), each))
        if (
            isinstance(each, ast.Constant)
            and isinstance(each.value, str)
            and "import " in each.value
        ):
            try:
                found += calls(ast.parse(each.value))
            except SyntaxError:
                continue  # prose
    return found


@functools.cache
def every_call() -> list[tuple[str, str, ast.Call]]:
    """Return the calls of modules that have one of the words which matter here."""
    texts = {path: path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    return [
        (path.relative_to(PACKAGE).as_posix(), name, call)
        for path, text in texts.items()
        if WORDS.search(text)
        for name, call in calls(ast.parse(text))
    ]


def is_unpickling(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return (
        module in UNPICKLERS and function in ("load", "loads", "Unpickler", "open")
    ) or name in (
        "deserialize",
        "loads",
    )


def test_the_page_on_security_lists_every_module_that_unpickles():
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    section = page.partition("## What is unpickled")[2]
    listed = set(re.findall(r"^\| `([\w/]+\.py)`", section, re.MULTILINE))
    assert listed == {module for module, name, _ in every_call() if is_unpickling(name)}


def test_no_module_evaluates_text_or_lets_numpy_unpickle():
    for module, name, call in every_call():
        assert name not in CODE_RUNNERS, module
        assert name not in ("yaml.load", "yaml.unsafe_load", "pd.read_pickle", "os.system"), module
        if name in ("np.load", "numpy.load", "npy_format.read_array"):
            options = {each.arg: ast.unparse(each.value) for each in call.keywords}
            assert options.get("allow_pickle") == "False", module


class Bomb:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def fuse(tmp_path) -> Path:
    """Folder that appears if anything is unpickled."""
    return tmp_path / "unpickled"


def write_npy(path: Path, bomb: Bomb) -> Path:
    np.save(path / "x.npy", np.array([bomb, bomb], object), allow_pickle=True)
    return path / "x.npy"


def write_plain_pickle(path: Path, bomb: Bomb) -> Path:
    (path / "x.npy").write_bytes(pickle.dumps(bomb))
    return path / "x.npy"


def write_npz(path: Path, bomb: Bomb) -> Path:
    np.savez(path / "x.npz", x=np.array([bomb, bomb], object))
    return path / "x.npz"


def write_pickle_in_npz(path: Path, bomb: Bomb) -> Path:
    with zipfile.ZipFile(path / "x.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(bomb))
    return path / "x.npz"


def write_zarr(path: Path, metadata: dict[str, object], chunk: str, bomb: Bomb) -> Path:
    name = ".zarray" if metadata["zarr_format"] == 2 else "zarr.json"
    (path / "x.zarr" / chunk).parent.mkdir(parents=True)
    (path / "x.zarr" / name).write_text(json.dumps(metadata))
    (path / "x.zarr" / chunk).write_bytes(pickle.dumps(bomb))
    return path / "x.zarr"


V2 = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "fill_value": 0, "order": "C"}
PICKLE = {"id": "pickle", "protocol": 5}


def write_zarr_of_objects(path: Path, bomb: Bomb) -> Path:
    metadata = {**V2, "dtype": "|O", "compressor": None, "filters": [PICKLE]}
    return write_zarr(path, metadata, "0.0", bomb)


def write_zarr_with_a_filter(path: Path, bomb: Bomb) -> Path:
    metadata = {**V2, "dtype": "<f4", "compressor": None, "filters": [PICKLE]}
    return write_zarr(path, metadata, "0.0", bomb)


def write_zarr_with_a_compressor(path: Path, bomb: Bomb) -> Path:
    metadata = {**V2, "dtype": "<f4", "compressor": PICKLE, "filters": None}
    return write_zarr(path, metadata, "0.0", bomb)


def write_zarr_3(path: Path, bomb: Bomb) -> Path:
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4, 4],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}],
        "attributes": {},
    }
    return write_zarr(path, metadata, "c/0/0", bomb)


def read_all(path: Path) -> None:
    for array in open_source(str(path)).values():
        array.read(0, array.shape[0])


@pytest.mark.parametrize(
    "write",
    [
        write_npy,
        write_plain_pickle,
        write_npz,
        write_pickle_in_npz,
        write_zarr_of_objects,
        write_zarr_with_a_filter,
        write_zarr_with_a_compressor,
        write_zarr_3,
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_no_file_of_arrays_is_unpickled(tmp_path, fuse, write):
    path = write(tmp_path, Bomb(fuse))
    with pytest.raises(dx.DaskOnnxError):
        read_all(path)
    assert not fuse.exists()


def test_no_table_is_unpickled(tmp_path, fuse):
    """Arrow once had an extension type that was a pickle."""
    payload = pickle.dumps(Bomb(fuse))
    field = pa.field(
        "c0",
        pa.float32(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payload,
        },
    )
    schema = pa.schema([field], metadata={b"pandas": b"{}", b"pickle": payload})
    table = pa.table([pa.array([1.0, 2.0], pa.float32())], schema=schema)
    pq.write_table(table, tmp_path / "x.parquet")
    onnx.save(dense_model(), tmp_path / "model.onnx")
    found = CliRunner().invoke(
        main,
        [
            *("predict", str(tmp_path / "model.onnx"), str(tmp_path / "x.parquet")),
            *(str(tmp_path / "out.parquet"), "--trusted"),
        ],
    )
    assert found.exit_code == 2  # one column where the model takes eight
    assert not fuse.exists()


def test_no_part_of_a_model_is_unpickled(fuse, tmp_path):
    payload = pickle.dumps(Bomb(fuse))
    model = dense_model()
    model.metadata_props.add(key="pickle", value=payload.decode("latin-1"))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pickle", payload))
    model.graph.doc_string = payload.decode("latin-1")
    onnx.save(model, tmp_path / "model.onnx")
    onnx.save(dense_model(), tmp_path / "plain.onnx")
    (tmp_path / "pickle.onnx").write_bytes(payload)
    for name in ("model", "pickle"):
        with pytest.raises(dx.ModelError):  # an unknown attribute; no protobuf
            dx.load(tmp_path / f"{name}.onnx").predict(np.ones((2, 8), np.float32))
    assert not fuse.exists()


def test_no_file_of_the_store_is_unpickled(fuse, tmp_path):
    payload = pickle.dumps(Bomb(fuse))
    model = dx.load(layers_model([64, 64], width=64))
    x = np.ones((4, 64), np.float32)
    with dask.config.set({"onnx.store.directory": str(tmp_path / "store")}):
        expected = model.predict(x)
        model._published()
        files = [path for path in Store().root.rglob("*") if path.is_file()]
        assert any(path.parent.name == "blobs" for path in files)
        for path in files:
            if path.parent.name not in ("locks", "leases"):
                path.write_bytes(payload)
        again = dx.load(layers_model([64, 64], width=64))
        np.testing.assert_array_equal(again.predict(x), expected)
    assert not fuse.exists()


def test_modules_in_the_folder_of_a_model_are_not_imported(tmp_path, store_directory):
    """The current folder is on the path of modules only for --pre and --post."""
    onnx.save(dense_model(), tmp_path / "model.onnx")
    for name in ("onnx", "numpy", "dask", "rich", "onnxruntime", "zarr", "bokeh", "cupy", "orjson"):
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('imported')\n")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "from dask_onnx.cli import run; run()",
            "inspect",
            "model.onnx",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()
