"""Plans of decoders: stages of layers, each of which reads and returns the cache of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.generation_options import check_count
from dask_onnx.planning.recipe import at_values
from dask_onnx.planning.stages import Stage


def decoder_plan(model: Model, form: DecoderForm, n_stages: int | None, plan: Any) -> Any:
    """Return the plan of a decoder that is cut into stages; None for a whole one. Runs nothing.

    Parameters
    ----------
    model : Model
    form : DecoderForm
        Roles of its inputs and outputs.
    n_stages : int, optional
        Number of stages.
    plan : Plan, optional
        The caller's own cut.

    Raises
    ------
    InputError
        Both options are given, or one is of a wrong type.
    PlanError
        The model cannot be cut so.
    """
    if n_stages is not None and plan is not None:
        raise InputError(
            "n_stages and plan were given",
            "give one of them: both cut the model",
            option="n_stages",
        )
    if plan is not None:
        stages = getattr(plan, "stages", None)
        if not isinstance(stages, Sequence) or not all(isinstance(s, Stage) for s in stages):
            raise InputError(
                f"plan is of type {type(plan).__name__}",
                "give what model.plan returns for a cut into stages",
                option="plan",
            )
        return plan
    if n_stages is None:
        return None
    check_count("n_stages", n_stages)
    if not form.cache:
        raise PlanError(
            "the model has no cache of keys and values, and a decoder is cut where it is kept",
            "export it with a cache (Optimum: --task text-generation-with-past)",
            option="n_stages",
            suggestions=[Suggestion("n_stages")],
        )
    outputs = list(form.outputs)
    found = model.plan("pipeline", n_stages=n_stages, outputs=outputs)
    ends = _ends(found.stages, form)
    return found if ends is None else model.plan(at_values(ends), outputs=outputs)


def _ends(stages: Sequence[Stage], form: DecoderForm) -> list[list[str]] | None:
    """Return the values at which stages end if each is to keep its cache; None if they do so."""
    reads = [{spec.name for spec in stage.inputs} for stage in stages]
    makes = [[spec.name for spec in stage.outputs] for stage in stages]
    owners = {
        tensor.present: max((i for i, names in enumerate(reads) if tensor.past in names), default=0)
        for tensor in form.cache
    }
    if all(present in makes[owner] for present, owner in owners.items()):
        return None
    ends = []
    for number, names in enumerate(makes[:-1]):
        later = set[str]().union(*reads[number + 1 :])
        crossing = [name for name in names if name in later and name not in owners]
        ends.append(crossing + [name for name, owner in owners.items() if owner == number])
    return ends
