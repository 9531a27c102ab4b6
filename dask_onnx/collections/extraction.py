"""Extraction of parts of a model as models of their own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence, Set
from typing import Any

from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import extract_onnx


def extract(
    facts: ModelFacts, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> ModelFacts:
    """Return the part of a model between named values; see `Model.extract`.

    Raises
    ------
    InputError
        A value does not exist or has no known type, or the outputs need an input of the model that
        `inputs` leaves out.
    """
    graph = facts.graph
    wanted = resolve_outputs(outputs, graph.outputs, facts.known_values).names
    given = list(graph.inputs if inputs is None else inputs)
    defaults = {spec.name: spec for spec in facts.onnx.defaults}
    _check_inputs_exist(given, facts.known_values | set(defaults))
    nodes, read = graph.between(given, wanted)
    missing = [name for name in graph.inputs if name in read and name not in given]
    if missing:
        raise InputError(
            f"outputs {', '.join(wanted)} also need {', '.join(missing)}",
            "name these among the inputs too, or cut nearer to the outputs",
            input=missing[0],
            option="inputs",
            suggestions=[Suggestion("inputs", [*given, *missing])],
        )
    needed = given if inputs is not None else [name for name in given if name in read]
    part = extract_onnx(
        facts.onnx,
        nodes,
        [defaults.get(name) or facts.typed_spec(name) for name in needed],
        [facts.typed_spec(name) for name in wanted],
    )
    return ModelFacts(part, facts.custom, facts.libraries)


def with_fed_defaults(facts: ModelFacts, x: Any) -> ModelFacts:
    """Return the model with those initializers as inputs that `x` feeds.

    Parameters
    ----------
    facts : ModelFacts
    x : array_like, or mapping of str to array_like
        Inputs of a request.

    Returns
    -------
    ModelFacts
        `facts` itself if `x` feeds none of its optional inputs.
    """
    defaults = facts.onnx.defaults
    if not defaults or not isinstance(x, Mapping):
        return facts
    fed = tuple(spec.name for spec in defaults if spec.name in x)
    if not fed:
        return facts
    found: ModelFacts = facts.kept.get_or_make(
        ("with fed defaults", fed),
        lambda: extract(facts, [*facts.graph.inputs, *fed], facts.graph.outputs),
    )
    return found


def _check_inputs_exist(names: Sequence[str], known: Set[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
            raise InputError(
                f"the model has no input or value {name!r}",
                f"similar names are {', '.join(map(repr, near))}"
                if near
                else "name a value of the model's graph",
                option="inputs",
                suggestions=[Suggestion("inputs", each) for each in near],
            )
