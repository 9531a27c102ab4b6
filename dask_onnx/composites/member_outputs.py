"""Outputs that a request wants of several models."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, Suggestion


@dataclass(frozen=True, slots=True)
class WantedOutputs:
    """Outputs of a request."""

    names: tuple[str, ...]
    """Names, in the order that the caller gave them."""
    by_member: Mapping[str, tuple[str, ...]]
    """The same for each model that has some."""
    is_bare: bool
    """True if the result is the one output rather than a mapping."""


def wanted_outputs(outputs: Outputs, members: Mapping[str, tuple[str, ...]]) -> WantedOutputs:
    """Return the outputs that an option `outputs` names.

    Parameters
    ----------
    outputs : None, str or sequence of str
        None: all. The name of a model: its outputs. A single name of one output: that one, bare.
    members : mapping of str to tuple of str
        Outputs of each model.

    Raises
    ------
    InputError
        There is no such output or model, or none is named.
    """
    every = {name: member for member, own in members.items() for name in own}
    asked = list(members) if outputs is None else outputs
    asked = [asked] if isinstance(asked, str) else list(asked)
    names: dict[str, None] = {}
    for each in asked:
        if each not in every and each not in members:
            known = [*members, *every]
            near = difflib.get_close_matches(str(each), known, n=3, cutoff=0.5)
            raise InputError(
                f"no model has an output {each!r}",
                f"the models and outputs are {', '.join(map(repr, known))}",
                option="outputs",
                suggestions=[Suggestion("outputs", name) for name in near or known],
            )
        names |= dict.fromkeys(members.get(each, (each,)))
    if not names:
        raise InputError("outputs is empty", "name at least one, or leave it out", option="outputs")
    chosen: dict[str, tuple[str, ...]] = {}
    for name in names:
        chosen[every[name]] = (*chosen.get(every[name], ()), name)
    is_bare = len(names) == 1 and (outputs is None or isinstance(outputs, str))
    ordered = {member: chosen[member] for member in members if member in chosen}
    return WantedOutputs(tuple(names), ordered, is_bare)
