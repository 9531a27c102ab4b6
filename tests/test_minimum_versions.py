"""The oldest versions that are tested are those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = ("minimum.txt", "minimum-onnx.txt")
OF_THE_TABLE = {"onnx", "onnxruntime"}
"""Packages of which the tests need the versions of the conformance table."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bounds(requirements):
    """Return the lower bounds of requirements by name."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        (bound,) = [each for each in requirement.specifier if each.operator == ">="]
        found[requirement.name.lower()] = Version(bound.version)
    return found


def pinned():
    """Return the versions in the files of oldest versions by name; none is in both."""
    lines = [line for name in FILES for line in (ROOT / "tests" / name).read_text().splitlines()]
    matches = [re.fullmatch(r"([\w-]+)==([\d.]+)", line) for line in lines if line[:1] != "#"]
    assert len({match[1] for match in matches}) == len(matches)
    return {match[1].lower(): Version(match[2]) for match in matches}


def test_every_dependency_is_tested_at_its_lower_bound():
    lowest = bounds(PROJECT["dependencies"])
    found = pinned()
    assert set(found) == set(lowest)
    for name, version in found.items():
        wanted = lowest[name]
        # The first release of a series may have no wheels; a later one of the series stands for it.
        assert version >= wanted, name
        assert version.release[: len(wanted.release)] == wanted.release, name


def test_the_conformance_table_is_of_versions_that_are_allowed():
    lowest = bounds(PROJECT["dependencies"])
    exact = [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
    table = {each.name: each.specifier for each in exact if each.name in OF_THE_TABLE}
    for name, specifier in table.items():
        (version,) = [Version(each.version) for each in specifier]
        assert version >= lowest[name], name


def test_classifiers_name_the_versions_of_python_that_are_allowed():
    lowest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    named = [re.search(r"Python :: 3\.(\d+)$", text) for text in PROJECT["classifiers"]]
    minors = sorted(int(match[1]) for match in named if match)
    assert minors == list(range(int(lowest[1]), minors[-1] + 1))
