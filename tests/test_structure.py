"""The folders of the package: import contracts, unique module names, tests that mirror them."""

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
TESTS_OF_NO_FOLDER = {"assets", "conformance", "real"}
"""What is fetched; ONNX's own suite; trained models, which go through all layers."""


def test_the_import_contracts_of_pyproject_hold():
    assert lint_imports(config_filename=str(TESTS.parent / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_opens_with_what_it_owns(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    # The command line is the one folder whose __init__ is a program.
    assert len(tree.body) == 1 or folder.name == "cli"


def test_no_two_modules_share_a_name():
    names = Counter(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} == set()


def test_tests_mirror_the_folders():
    mirrored = {path.name for path in TESTS.iterdir() if list(path.glob("test_*.py"))}
    assert mirrored - TESTS_OF_NO_FOLDER <= {path.name for path in PACKAGE.iterdir()}
