"""The reference has every public name, and pages that show files of the root show all of them."""

from __future__ import annotations

import re
from pathlib import Path

import dask_onnx as dx
import dask_onnx.io

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api"


def listed():
    """Return the names in the tables of the reference, with their number."""
    names = []
    for page in API.glob("*.md"):
        for table in page.read_text().split(".. autosummary::")[1:]:
            names += re.findall(r"^   ([\w.]+)$", table.partition("```")[0], re.MULTILINE)
    return names


def test_reference_has_every_public_name_once():
    names = listed()
    public = [*dx.__all__, *(f"io.{name}" for name in dask_onnx.io.__all__)]
    assert sorted(set(public) - set(names)) == []
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_reference_lists_nothing_that_is_not_public():
    backend = {"prepare", "run_model", "run_node", "supports_device", "is_compatible"}
    public = {*dx.__all__, *(f"io.{name}" for name in dask_onnx.io.__all__), *backend}
    assert set(listed()) <= public


def test_error_page_has_every_error_class():
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    errors = [name for name in dx.__all__ if name.endswith("Error")]
    assert [name for name in errors if f"`{name}`" not in text and f"dx.{name}" not in text] == []


def test_each_setting_of_the_package_has_a_comment_for_the_page():
    lines = (ROOT / "dask_onnx" / "onnx.yaml").read_text().splitlines()
    valued = [i for i, line in enumerate(lines) if re.match(r"^ +[\w-]+: \S", line)]
    assert valued
    assert [lines[i] for i in valued if not lines[i - 1].lstrip().startswith("#")] == []


def test_readme_fits_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def _markdown_files():
    generated = ("_build", "generated", "notebooks")
    pages = [
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not set(generated) & set(page.relative_to(ROOT).parts)
    ]
    return [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *pages]


def test_relative_links_between_files_lead_to_files():
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")
    broken = []
    for page in _markdown_files():
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        targets = link.findall(text)
        broken += [(page.name, t) for t in targets if not (page.parent / t).exists()]
    assert broken == []
