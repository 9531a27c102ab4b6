"""Plans as HTML: for a notebook, or as a page of their own, without external files.

A notebook gets no scripts; the page has one of its own that zooms and moves its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dask_onnx.core.formatting import format_bytes, format_count, printable
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.core.specs import TensorSpec, dtype_name, format_shape
from dask_onnx.diagnostics.picture import to_svg
from dask_onnx.diagnostics.sections import Section, sentence
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.stages import StageGraph

_MOST_ROWS = 50
"""Rows of a table; the text lists the others."""
MOST_DRAWN = 400
"""Stages up to which a page has a picture of all of them, besides the one that fits it."""
_ARRANGED = ("overview", "stages", "edges", "verdict")
"""Sections with a place of their own in the template; others follow in their order."""


def explain_html(
    stages: StageGraph,
    sections: Sequence[Section],
    title: str,
    *,
    worker_groups: Sequence[int] | None = None,
    measured: Sequence[float | None] | None = None,
    is_page: bool = False,
) -> str:
    """Return a stage graph as a piece of HTML that fits light pages and dark ones.

    In a notebook long tables are cut short; on a page of its own they scroll.

    Parameters
    ----------
    stages : StageGraph
    sections : sequence of Section
        Facts about the plan, from `plan_sections`.
    title : str
    worker_groups : sequence of int, optional
        Worker group of each stage, for the picture.
    measured : sequence of float or None, optional
        Seconds that each stage took, None where that is not known, for the picture.
    is_page : bool
        True if it is for a page of its own.
    """
    count = len(stages.stages)
    # The SVG writer has escaped the names in it.
    picture = Markup(to_svg(stages, title, worker_groups=worker_groups, measured=measured))
    return (
        _templates()
        .get_template("plan.html.j2")
        .render(
            title=printable(title),
            sections={section.name: section for section in sections},
            others=[section for section in sections if section.name not in _ARRANGED],
            picture=picture,
            count=count,
            most_rows=count + len(stages.edges) if is_page else _MOST_ROWS,
        )
    )


def explain_page(content: str, title: str, every: str | None = None) -> str:
    """Return what `explain_html` made as a whole document.

    Parameters
    ----------
    content : str
        Piece of HTML.
    title : str
    every : str, optional
        SVG of all stages, for a part of the page that can be opened.
    """
    template = _templates().get_template("plan_page.html.j2")
    return template.render(
        content=Markup(content),
        title=printable(title),
        every=None if every is None else Markup(every),
    )


def model_html(model: OnnxModel) -> str:
    """Return a model as a piece of HTML: its size, its inputs and its outputs."""
    opsets = ", ".join(
        f"{printable(domain) or 'ai.onnx'} {version}" for domain, version in model.opsets.items()
    )

    def rows(specs: Sequence[TensorSpec]) -> list[tuple[str, str, str]]:
        return [
            (
                printable(spec.name),
                printable(spec.kind or "")
                or ("unknown" if spec.dtype is None else dtype_name(spec.dtype)),
                "" if spec.kind else format_shape(spec.shape),
            )
            for spec in specs
        ]

    return (
        _templates()
        .get_template("model.html.j2")
        .render(
            name=printable(model.name),
            nodes=format_count(model.n_nodes, "node"),
            weights=format_bytes(model.parameter_bytes),
            opsets=opsets,
            inputs=rows(model.inputs),
            outputs=rows(model.outputs),
        )
    )


@cached_in_process("HTML templates")
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("dask_onnx.diagnostics"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["sentence"] = sentence
    return environment
