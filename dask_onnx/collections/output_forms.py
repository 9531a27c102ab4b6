"""Outputs that are sequences or maps: the tensors that are computed for them, and their assembly.

Tensors can be cut into chunks and joined again, sequences and maps cannot. So a request asks for
the tensors of which a sequence is made, and for the matrix that a list of maps was made of. Arrays
and tables keep these; rows of bags and Delayed get the maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed

from dask_onnx.analysis.labels import class_labels, map_labels
from dask_onnx.analysis.sequence_items import sequence_items
from dask_onnx.collections.inline import rows_first
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.plain_outputs import Labels


@dataclass(frozen=True, slots=True)
class OutputForm:
    """One output: the values of the graph that hold it, and what they make together."""

    values: tuple[str, ...]
    """Tensors to compute; the output itself unless it is a sequence of known items."""
    is_sequence: bool = False
    """True if the output is the list of these values."""
    labels: Labels | None = None
    """Keys of the maps that the model as exported makes of the rows; None if it makes none."""

    def of_arrays(self, found: Mapping[str, Any]) -> Any:
        """Return the output for a caller who gets arrays: a list of them for a sequence."""
        parts = [found[value] for value in self.values]
        return parts if self.is_sequence else parts[0]

    def of_row(self, row: Mapping[str, Any]) -> Any:
        """Return the output of one row: for maps a dict of class to score."""
        part = self.of_arrays(row)
        return part if self.labels is None else map_of_row(part, self.labels)

    def as_onnx(self, value: Any) -> Any:
        """Return a result of `of_arrays` in the type that the exported model gives it."""
        return value if self.labels is None else maps_of_rows(value, self.labels)

    def of_delayed(self, found: Mapping[str, Delayed]) -> Delayed:
        """Return the output as a Delayed: for maps a list with a dict for each row."""
        part = self.of_arrays(found)
        if self.is_sequence:
            key = f"sequence-{digest([item.key for item in part])}"
            together: Delayed = delayed(part, name=key)
            return together
        if self.labels is None:
            whole: Delayed = part
            return whole
        key = f"maps-{digest(part.key, self.labels)}"
        maps: Delayed = delayed(maps_of_rows)(part, self.labels, dask_key_name=key)
        return maps


def output_forms(facts: ModelFacts, outputs: Sequence[str]) -> dict[str, OutputForm]:
    """Return the form of each output, by name. Runs nothing; the result is kept."""
    return {name: _form(facts, name) for name in outputs}


def class_names(facts: ModelFacts) -> dict[str, Labels]:
    """Return the classes of each output that holds scores of a classifier, by its columns' name.

    Items of a sequence are named by output and position, as columns of tables are.
    """
    found: dict[str, Labels] = {}
    for name, value in labelled_values(facts, facts.graph.outputs).items():
        labels = class_labels(facts.graph, value)
        if labels is not None:
            found[name] = labels
    return found


def labelled_values(facts: ModelFacts, outputs: Sequence[str]) -> dict[str, str]:
    """Return the values that hold outputs, by name; items of a sequence by name and position."""
    found: dict[str, str] = {}
    for name, form in output_forms(facts, outputs).items():
        for place, value in enumerate(form.values):
            found[f"{name}_{place}" if form.is_sequence else name] = value
    return found


def computed_values(forms: Mapping[str, OutputForm]) -> list[str]:
    """Return the names of the values that outputs of these forms need, each once."""
    return list(dict.fromkeys(value for form in forms.values() for value in form.values))


def as_row_arrays(found: Mapping[str, Any], axes: Mapping[str, int | None]) -> dict[str, Any]:
    """Return results as arrays with their rows first, as files have them.

    Parameters
    ----------
    found : mapping of str to array, or list of arrays
        Results of a prediction for arrays, by output; of numpy or of Dask.
    axes : mapping of str to int or None
        Batch axis of each output.

    Returns
    -------
    dict of str to array
        Items of a sequence by name and position.
    """
    arrays: dict[str, Any] = {}
    for name, value in found.items():
        for place, part in enumerate(value if isinstance(value, list) else [value]):
            label = f"{name}_{place}" if isinstance(value, list) else name
            arrays[label] = rows_first(part, axes.get(name))
    return arrays


def maps_of_rows(scores: np.ndarray, labels: Labels) -> Any:
    """Return a dict of class to score for each row, as ``ZipMap`` does.

    Parameters
    ----------
    scores : ndarray, shape (rows, classes) or (classes,)
        One row if it is a vector; an array of more axes is returned unchanged.
    labels : tuple of str or int
        Classes.
    """
    if scores.ndim > 2:
        return scores
    return [map_of_row(row, labels) for row in np.atleast_2d(scores)]


def map_of_row(scores: np.ndarray, labels: Labels) -> Any:
    """Return a dict of class to score for the scores of one row; other shapes unchanged."""
    if scores.shape != (len(labels),):
        return scores
    return dict(zip(labels, scores.tolist(), strict=True))


def _form(facts: ModelFacts, name: str) -> OutputForm:
    def find() -> OutputForm:
        items = sequence_items(facts.graph, name)
        if items and all(item in facts.known_values for item in items):
            return OutputForm(items, is_sequence=True)
        return OutputForm((name,), labels=map_labels(facts.graph, name))

    found: OutputForm = facts.kept.get_or_make(("output form", name), find)
    return found
