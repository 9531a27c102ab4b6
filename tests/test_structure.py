"""Folders of the package: import contracts, unique module names, mirrored tests."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import dask_onnx

PACKAGE = Path(dask_onnx.__file__).parent
TESTS = Path(__file__).parent
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
TESTS_WITHOUT_FOLDER = {"assets", "conformance", "docs", "fuzz", "real"}
"""Fetched assets, ONNX's test suite, the documentation, damaged models, and trained models, which
use all layers.
"""


def test_the_import_contracts_of_pyproject_hold():
    assert lint_imports(config_filename=str(TESTS.parent / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_folder_has_a_docstring_and_no_code(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    # The command line has code in its __init__; `io` has the functions that users call.
    assert len(tree.body) == 1 or folder.name in {"cli", "io"}


def test_no_two_modules_share_a_name():
    names = Counter(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} == set()


def test_tests_mirror_the_folders():
    mirrored = {path.name for path in TESTS.iterdir() if list(path.glob("test_*.py"))}
    assert mirrored - TESTS_WITHOUT_FOLDER <= {path.name for path in PACKAGE.iterdir()}
