"""Labels of stages, made of the names of their nodes: what people see in Dask's dashboard.

Dask shows the first twelve characters of a longer name, groups tasks by name, and colours them by
it. Labels of one plan are therefore different, and begin with what tells most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN_CHARACTERS = 15
"""Characters up to which Dask's dashboard shows a name whole."""
_LABEL_NODES = 3
"""Most nodes that a label names; a longer stage is named by its first and last node."""
_LABEL_LENGTH = 48
"""Most characters of a node's name in a label."""
_LABEL_FOLDERS = 3
"""Components of a path-like node name in a label, counted from its end."""
_BETWEEN_NAMES = re.compile(r"(\.\.+|\+)")
_GAP = "__"
"""Replacement of the middle of a single word that is too long."""


def identifier(name: str) -> str:
    """Return a name in a form that Dask's `key_split` keeps: a letter first, no hyphen, short.

    Of a path, whole components are left out from its front, since exporters put the module's place
    in the model before what a node is; a single long word loses its middle.
    """
    parts = name.replace("::", ".").strip("/").split("/")[-_LABEL_FOLDERS:]
    text = re.sub(r"[^0-9A-Za-z_.]+", "_", ".".join(parts)).strip("_.")
    if len(text) > _LABEL_LENGTH:
        text = _shortened(text)
    if not text:
        return "stage"
    return text if text[0].isalpha() else f"n{text}"


def _shortened(text: str) -> str:
    components = text.split(".")
    while len(components) > 1 and len(".".join(components)) > _LABEL_LENGTH:
        components = components[1:]
    text = ".".join(components).strip("_.")
    if len(text) <= _LABEL_LENGTH:
        return text
    end = (_LABEL_LENGTH - len(_GAP)) // 2
    return text[: _LABEL_LENGTH - len(_GAP) - end] + _GAP + text[-end:]


def label_of_names(names: Sequence[str]) -> str:
    """Return the label of a stage of nodes with these names, in their order."""
    identifiers = list(map(identifier, names))
    if len(identifiers) > _LABEL_NODES:
        return f"{identifiers[0]}..{identifiers[-1]}"
    return "+".join(identifiers)


def distinct_labels(labels: Sequence[str]) -> list[str]:
    """Return labels of one plan's stages that Dask's dashboard can tell apart.

    They are kept if they differ and are short. Otherwise each gets the stage's number in front, and
    names that are paths get their last component first: ``s03.MaxPool@model.9.m``.

    Examples
    --------
    >>> distinct_labels(["Conv_0", "Relu_1"])
    ['Conv_0', 'Relu_1']
    >>> distinct_labels(["model.9.m.MaxPool", "model.9.m.MaxPool"])
    ['s0.MaxPool@model.9.m', 's1.MaxPool@model.9.m']
    """
    is_short = all(len(label) <= SHOWN_CHARACTERS for label in labels)
    if len(labels) < 2 or (is_short and len(set(labels)) == len(labels)):
        return list(labels)
    digits = len(str(len(labels) - 1))
    return [f"s{number:0{digits}}.{_last_first(label)}" for number, label in enumerate(labels)]


def _last_first(label: str) -> str:
    """Return a label in which each name that is a path begins with its last component."""
    return "".join(
        part if _BETWEEN_NAMES.fullmatch(part) else _name_last_first(part)
        for part in _BETWEEN_NAMES.split(label)
    )


def _name_last_first(name: str) -> str:
    components = name.split(".")
    # A number alone says nothing: "Conv.12" stays together.
    count = 1 if any(map(str.isalpha, components[-1])) else 2
    rest = ".".join(components[:-count])
    return f"{'.'.join(components[-count:])}@{rest}" if rest else name
