"""The directive ``configuration-table``: keys, defaults and comments of the package's YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FILE = Path(__file__).parents[2] / "dask_onnx" / "onnx.yaml"
_KEY = re.compile(r"^( *)([\w-]+):\s*(.*)$")


@dataclass(frozen=True)
class Setting:
    """A key of the configuration."""

    key: str
    """The whole key, such as "onnx.store.directory"."""
    default: str
    """Its default, as YAML."""
    meaning: str
    """The comment above it."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "DASK_" + self.key.upper().replace(".", "__").replace("-", "_")


def settings(text: str) -> Iterator[Setting]:
    """Yield the settings of a YAML file whose keys have comments above them."""
    parents: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip("# "))
        elif match := _KEY.match(line):
            indent, name, default = match.groups()
            parents[len(indent) // 2 :] = [name]
            if default:
                yield Setting(".".join(parents), default, " ".join(comment))
            comment = []
        else:
            comment = []


class ConfigurationTable(SphinxDirective):
    """Insert a definition for each setting."""

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        self.env.note_dependency(str(FILE))
        listed = nodes.definition_list(classes=["settings"])
        for each in settings(FILE.read_text()):
            term = nodes.term("", "", nodes.literal("", each.key))
            term += [nodes.Text(" = "), nodes.literal("", each.default)]
            meaning = nodes.definition("", nodes.paragraph("", each.meaning))
            variable = nodes.paragraph("", "", nodes.literal("", each.variable))
            meaning += variable
            target = nodes.make_id(each.key)
            listed += nodes.definition_list_item("", term, meaning, ids=[target])
        return [listed]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("configuration-table", ConfigurationTable)
    return {"version": "1", "parallel_read_safe": True}
