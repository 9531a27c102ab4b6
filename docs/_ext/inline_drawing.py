"""The directive ``drawing``: an SVG inside the page, so that its colours follow the theme."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


class Drawing(SphinxDirective):
    """Insert the SVG file of the argument; the content is its caption.

    Drawings use the classes of ``_static/site.css`` rather than colours.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return a figure with the SVG."""
        path = Path(self.env.relfn2path(self.arguments[0])[1])
        self.env.note_dependency(str(path))
        svg = path.read_text()
        label = self.options["alt"].replace('"', "&quot;")
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        figure = nodes.container(classes=["drawing"])
        figure += nodes.raw("", svg, format="html")
        if self.content:
            caption = nodes.paragraph(classes=["drawing-caption"])
            children, messages = self.state.inline_text("\n".join(self.content), self.lineno)
            caption += children
            figure += [caption, *messages]
        return [figure]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("drawing", Drawing)
    return {"version": "1", "parallel_read_safe": True}
