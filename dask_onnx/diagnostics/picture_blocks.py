"""Contents of a picture's boxes: one stage each, or several that are folded to fit a page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_count, format_seconds, printable
from dask_onnx.diagnostics.picture_folding import Fold, Page, fold
from dask_onnx.diagnostics.stage_tables import StageLink, stage_links
from dask_onnx.planning.stages import StageGraph

_NUMBER = re.compile(r"^s\d+\.(?=.)")
"""Prefix that `planning.stage_labels` gives to labels that are long or alike."""
_MOST_LISTED = 24
"""Stages that the tooltip of a box names."""


@dataclass(frozen=True, slots=True)
class Block:
    """Contents of a box of a picture."""

    stages: tuple[int, ...]
    """Positions of its stages."""
    name: str
    """Label of its stage; of several, of the first and the last."""
    numbers: str
    """Position of its stage, or the positions of several."""
    seconds: float
    """Predicted seconds of all its stages."""
    measured: float | None
    """Measured seconds of all its stages; None if those of one are not known."""
    nodes: int
    flops: int
    parameter_bytes: int
    worker_groups: tuple[int, ...]
    """Worker groups of its stages; empty where stages run anywhere."""
    colours: tuple[str, ...]
    """Colour of each of its stages in Dask's dashboard, as ``#rrggbb``."""
    tooltip: str
    """Its stages with their seconds, inputs and outputs."""

    @property
    def is_folded(self) -> bool:
        """True if it stands for several stages."""
        return len(self.stages) > 1


def blocks_of(
    stages: StageGraph,
    worker_groups: Sequence[int] | None,
    measured: Sequence[float | None] | None,
    page: Page | None,
) -> tuple[list[Block], list[StageLink]]:
    """Return the boxes of a picture, in topological order, and the lines between them.

    Parameters
    ----------
    stages : StageGraph
    worker_groups : sequence of int, optional
        Worker group of each stage.
    measured : sequence of float or None, optional
        Seconds that each stage took.
    page : Page, optional
        Room that the picture has; None to draw every stage.
    """
    links, count = stage_links(stages), len(stages.stages)
    folds = [Fold((i,)) for i in range(count)]
    if page is not None:
        folds = fold(
            count,
            [(link.producer, link.consumer) for link in links],
            [stage.cost.seconds for stage in stages.stages],
            worker_groups or [None] * count,
            page,
        )
    place = {member: i for i, each in enumerate(folds) for member in each.members}
    return [_block(stages, each, worker_groups, measured) for each in folds], _joined(links, place)


def _joined(links: Sequence[StageLink], place: dict[int, int]) -> list[StageLink]:
    """Return the links between blocks; a value that several stages of a block read goes once."""
    grouped: defaultdict[tuple[int, int], dict[tuple[str, ...], int]] = defaultdict(dict)
    for link in links:
        ends = place[link.producer], place[link.consumer]
        if ends[0] != ends[1]:
            grouped[ends][link.values] = link.bytes
    return [
        StageLink(*ends, tuple(dict.fromkeys(v for own in sent for v in own)), sum(sent.values()))
        for ends, sent in grouped.items()
    ]


def _block(
    stages: StageGraph,
    fold: Fold,
    worker_groups: Sequence[int] | None,
    measured: Sequence[float | None] | None,
) -> Block:
    own = [stages.stages[i] for i in fold.members]
    took = [None if measured is None else measured[i] for i in fold.members]
    known = [seconds for seconds in took if seconds is not None]
    groups = () if worker_groups is None else tuple(worker_groups[i] for i in fold.members)
    return Block(
        stages=fold.members,
        name=_name(stages, fold),
        numbers=_numbers(fold.members),
        seconds=sum(stage.cost.seconds for stage in own),
        measured=sum(known) if len(known) == len(took) else None,
        nodes=sum(len(stage.nodes) for stage in own),
        flops=sum(stage.cost.flops for stage in own),
        parameter_bytes=sum(stage.cost.parameter_bytes for stage in own),
        worker_groups=tuple(dict.fromkeys(groups)),
        colours=tuple(colour_of(stage.label) for stage in own),
        tooltip=_tooltip(stages, fold, worker_groups),
    )


def _numbers(members: Sequence[int]) -> str:
    if len(members) == 1:
        return str(members[0])
    is_range = members[-1] - members[0] == len(members) - 1
    return f"{members[0]}-{members[-1]}" if is_range else f"{members[0]}…{members[-1]}"


def shown_label(label: str) -> str:
    """Return a label without the stage's number, which a picture shows beside it."""
    return printable(_NUMBER.sub("", label))


def _name(stages: StageGraph, fold: Fold) -> str:
    labels = [shown_label(stages.stages[i].label) for i in fold.members]
    if len(labels) == 1:
        return labels[0]
    if fold.kind == "branches":
        return f"{format_count(len(labels), 'branch', 'es')} side by side"
    return f"{labels[0].partition('..')[0]}..{labels[-1].rpartition('..')[2]}"


def _tooltip(stages: StageGraph, fold: Fold, worker_groups: Sequence[int] | None) -> str:
    lines = []
    for i in fold.members[:_MOST_LISTED]:
        stage = stages.stages[i]
        worker = "" if worker_groups is None else f", worker {worker_groups[i]}"
        seconds = format_seconds(stage.cost.seconds)
        lines.append(f"{i}  {printable(stage.label)}: {seconds}{worker}")
    if len(fold.members) > _MOST_LISTED:
        lines.append(f"and {len(fold.members) - _MOST_LISTED:,} more")
    if len(fold.members) == 1:
        stage = stages.stages[fold.members[0]]
        lines.append(format_count(len(stage.nodes), "node"))
        lines.append(f"in: {', '.join(printable(str(spec)) for spec in stage.inputs)}")
        lines.append(f"out: {', '.join(printable(str(spec)) for spec in stage.outputs)}")
    return "\n".join(lines)
