"""A plan as HTML: for a notebook, and as a page of its own. No scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dask_onnx.core.formatting import format_bytes, format_flops, format_seconds
from dask_onnx.diagnostics.picture import to_svg
from dask_onnx.diagnostics.stage_text import links, values_of
from dask_onnx.planning.choice import Verdict
from dask_onnx.planning.stages import StageGraph

_MOST_ROWS = 50
"""Of a table."""
_MOST_DRAWN = 60
"""Stages of a picture; a larger one tells nothing at the size of a page."""
_STYLE = """
.dask-onnx-plan {font-family: Helvetica, Arial, sans-serif; font-size: 13px; line-height: 1.45}
.dask-onnx-plan h3 {font-size: 17px; margin: 0.4em 0}
.dask-onnx-plan p {margin: 0.5em 0; overflow-wrap: anywhere}
.dask-onnx-plan p.verdict {border-left: 4px solid #0072b2; padding-left: 8px; font-weight: bold}
.dask-onnx-plan pre {font-size: 12px; margin: 0.5em 0; white-space: pre-wrap}
.dask-onnx-plan .picture {overflow: auto; max-height: 1200px; margin: 0.6em 0}
.dask-onnx-plan .picture svg {display: block; height: auto; max-width: 100%;
  min-width: calc(0.8 * var(--width))}
.dask-onnx-plan pre.columns {white-space: pre}
.dask-onnx-plan pre.columns, .dask-onnx-plan .wide {overflow-x: auto}
.dask-onnx-plan table {border-collapse: collapse; margin: 0.4em 0 1em}
.dask-onnx-plan caption, .dask-onnx-plan summary {font-weight: bold; text-align: left}
.dask-onnx-plan th, .dask-onnx-plan td {padding: 2px 9px; text-align: right;
  white-space: nowrap; border-bottom: 1px solid rgba(128, 128, 128, 0.35);
  background: transparent; color: inherit}
.dask-onnx-plan .name {text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 14em}
"""


def explain_html(
    stages: StageGraph,
    text: str,
    title: str,
    *,
    verdict: Verdict | None = None,
    worker_groups: Sequence[int] | None = None,
    measured: Sequence[float | None] | None = None,
) -> str:
    """A stage graph as a piece of HTML that fits light pages and dark ones.

    Long tables are cut short, and a picture of many stages is left out.

    Parameters
    ----------
    text : what `Plan.explain` says
        Its tables, and the verdict with the alternatives, stand here as tables; all else as it is.
    worker groups : worker group of each stage, a worker's share
    measured : seconds that each stage took, None where that is not known
    """
    head, *rest = _prose(text, [] if verdict is None else verdict.describe())
    parts = [f"<style>{_STYLE}</style>", f"<h3>{escape(title)}</h3>"]
    if verdict is not None:
        parts.append(f'<p class="verdict">{escape(verdict.sentence)}</p>')
    parts.append(f"<p>{'<br>'.join(map(escape, head.splitlines()))}</p>")
    count = len(stages.stages)
    if count <= _MOST_DRAWN:
        picture = to_svg(stages, title, worker_groups=worker_groups, measured=measured)
        parts.append(f'<div class="picture">{picture}</div>')
    else:
        parts.append(
            f"<p>No picture of {count} stages here: plan.visualize(&quot;plan.svg&quot;) draws it."
            "</p>"
        )
    parts.append(_stage_table(stages, worker_groups, measured))
    if stages.edges:
        parts.append(_edge_table(stages))
    if verdict is not None:
        parts.append(_alternatives(verdict))
    parts += [_pre(paragraph) for paragraph in rest]
    return f'<div class="dask-onnx-plan">{"".join(parts)}</div>'


def explain_page(content: str, title: str) -> str:
    """What `explain_html` gives, as a whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def _prose(text: str, told: Iterable[str]) -> list[str]:
    """The paragraphs of a text that are no tables, without some lines."""
    unwanted = set(told)
    lines = [line for line in text.splitlines() if line not in unwanted]
    paragraphs = "\n".join(lines).strip("\n").split("\n\n")
    return [
        paragraph
        for paragraph in paragraphs
        if paragraph.strip()
        and not paragraph.lstrip().startswith("#  stage")
        # what follows the word is the table
        and paragraph.splitlines()[0] != "edges"
    ]


def _pre(paragraph: str) -> str:
    """Text as it is: lines that are set in stand in columns, which wrapping would tear apart."""
    kind = ' class="columns"' if "\n " in paragraph else ""
    return f"<pre{kind}>{escape(paragraph)}</pre>"


def _stage_table(
    stages: StageGraph,
    worker_groups: Sequence[int] | None,
    measured: Sequence[float | None] | None,
) -> str:
    kernels = {stage.kernel for stage in stages.stages}
    columns: dict[str, list[str]] = {
        "#": [str(i) for i in range(len(stages.stages))],
        "stage": [stage.label for stage in stages.stages],
        "nodes": [str(len(stage.nodes)) for stage in stages.stages],
        "compute": [format_flops(stage.cost.flops) for stage in stages.stages],
        "predicted": [format_seconds(stage.cost.seconds) for stage in stages.stages],
    }
    if measured is not None:
        columns["measured"] = ["" if each is None else format_seconds(each) for each in measured]
    columns["weights"] = [format_bytes(stage.cost.parameter_bytes) for stage in stages.stages]
    columns["gives"] = [format_bytes(stage.cost.activation_bytes) for stage in stages.stages]
    if worker_groups is not None:
        columns["worker"] = [str(worker_group) for worker_group in worker_groups]
    if kernels != {"onnxruntime"}:
        columns["runs on"] = [stage.kernel for stage in stages.stages]
    return _table("stages", columns, {"stage"})


def _edge_table(stages: StageGraph) -> str:
    between = links(stages)
    columns = {
        "from": [str(link.producer) for link in between],
        "to": [str(link.consumer) for link in between],
        "bytes": [format_bytes(link.bytes) for link in between],
        "values": [values_of(link) for link in between],
    }
    return f"<details open><summary>edges</summary>{_table('', columns, {'values'})}</details>"


def _alternatives(verdict: Verdict) -> str:
    found = verdict.alternatives
    columns = {
        "way": [each.name for each in found],
        "predicted": [format_seconds(each.seconds) for each in found],
        "memory a worker": [format_bytes(each.worker_bytes) for each in found],
        "": [
            f"refused: {each.refused}"
            if each.refused
            else (verdict.word if each.name == verdict.chosen else "")
            for each in found
        ],
    }
    return _table("alternatives", columns, {"way", ""})


def _table(caption: str, columns: dict[str, list[str]], names: set[str]) -> str:
    """Columns by their heads; those of `names` hold words, the others numbers."""

    def cell(tag: str, column: str, content: str) -> str:
        kind = ' class="name"' if column in names else ""
        return f"<{tag}{kind}>{escape(content)}</{tag}>"

    rows = list(zip(*columns.values(), strict=True))
    lines = [
        '<div class="wide"><table>',
        f"<caption>{escape(caption)}</caption>" if caption else "",
        "<thead><tr>",
    ]
    lines += [cell("th", column, column) for column in columns]
    lines.append("</tr></thead><tbody>")
    for row in rows[:_MOST_ROWS]:
        cells = (cell("td", column, each) for column, each in zip(columns, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    if len(rows) > _MOST_ROWS:
        more = f"and {len(rows) - _MOST_ROWS} more: print(plan.explain()) lists them"
        lines.append(f'<tr><td class="name" colspan="{len(columns)}">{more}</td></tr>')
    return "".join([*lines, "</tbody></table></div>"])
