"""English sentences from the documentation of installed packages."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.resources import files

_PACKAGES = (
    "sklearn.cluster sklearn.decomposition sklearn.ensemble sklearn.feature_extraction.text "
    "sklearn.linear_model sklearn.manifold sklearn.metrics sklearn.model_selection "
    "sklearn.preprocessing sklearn.svm sklearn.datasets numpy numpy.linalg numpy.random "
    "pandas pandas.api.types"
).split()
"""Packages whose docstrings contain prose."""


def sentences(count: int) -> list[str]:
    """Return up to `count` distinct sentences.

    The first are scikit-learn's descriptions of its data sets; docstrings of scikit-learn, numpy
    and pandas follow.
    """
    found: dict[str, None] = {}
    for text in (*_descriptions(), *_docstrings()):
        found.update(dict.fromkeys(_sentences(text)))
        if len(found) >= count:
            break
    return list(found)[:count]


def _descriptions() -> Iterator[str]:
    for path in sorted(files("sklearn.datasets.descr").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".rst"):
            yield path.read_text(encoding="utf-8")


def _docstrings() -> Iterator[str]:
    for package in _PACKAGES:
        module = importlib.import_module(package)
        for name, thing in sorted(vars(module).items()):
            if callable(thing) and not name.startswith("_"):
                yield inspect.getdoc(thing) or ""


def _sentences(text: str) -> Iterator[str]:
    """Return the sentences of a text without markup, examples and tables."""
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r">>>|\n\s*[-=~]{3,}\s*\n|^\s*\.\. ", paragraph):
            continue
        plain = " ".join(re.sub(r"[`*|=>_]+", "", paragraph).split())
        for sentence in re.split(r"(?<=[.!?])\s+", plain):
            if len(sentence.split()) > 4 and sentence[:1].isupper() and sentence[-1:] in ".!?":
                yield sentence
