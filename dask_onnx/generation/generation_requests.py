"""Requests of generation: the one stage of each model, made ready for tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask.delayed import Delayed, delayed

from dask_onnx.collections.inline import InlineGraph, inline_graph, supply_collections
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.run_options import RowOptions, RunOptions
from dask_onnx.core.errors import ModelError, PlanError, Suggestion
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.generation.array_encoders import ArrayEncoderForm
from dask_onnx.generation.array_writer import ArrayWriter
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_trials import EncoderCall
from dask_onnx.generation.encoder_runs import EncoderForm
from dask_onnx.generation.genai_folders import GenAiFolder
from dask_onnx.generation.generation_options import GenerationOptions
from dask_onnx.generation.prompt_collections import GenerationRequest
from dask_onnx.generation.prompt_writer import PromptWriter, call_of, calls_of
from dask_onnx.generation.stage_caches import DecoderStage
from dask_onnx.generation.tokenizer_checks import tokenizer_name
from dask_onnx.runtime.stage_calls import StageCall


@dataclass(frozen=True, slots=True)
class GivenEncoder:
    """An encoder that a caller has given."""

    facts: ModelFacts
    """Facts of its model."""
    form: EncoderForm
    """Roles of its inputs and outputs."""
    start: tuple[int, ...]
    """Tokens that each row of the decoder begins with."""


def make_request(
    facts: ModelFacts,
    form: DecoderForm,
    options: GenerationOptions,
    rows: RowOptions,
    content: bytes | None,
    encoder: GivenEncoder | None = None,
    genai: GenAiFolder | None = None,
    plan: Any = None,
    later: ModelFacts | None = None,
) -> GenerationRequest:
    """Return a request of generation. Nothing runs.

    Parameters
    ----------
    facts : ModelFacts
    form : DecoderForm
    options : GenerationOptions
    rows : RowOptions
        Treatment of prompts that cannot be used.
    content : bytes or None
        Content of the tokenizer's JSON file.
    encoder : GivenEncoder, optional
        Encoder whose states the model attends to.
    genai : GenAiFolder, optional
        Folder that ONNX Runtime GenAI runs in place of the model.
    plan : Plan, optional
        Stages to cut the decoder into.
    later : ModelFacts, optional
        Facts of the model of later tokens, where `facts` are those of the first ones alone.

    Raises
    ------
    ModelError
        Not all nodes of a model run in one session of ONNX Runtime.
    PlanError
        A tensor of the cache is read by another stage than the one that returns it.
    """
    main = facts if later is None else later
    kept = [tensor.present for tensor in form.cache if later is None or not tensor.is_source]
    try:
        graph, supplies, is_coupled = _stages(main, [form.logits.name, *kept], plan)
    except PlanError as error:
        if encoder is not None or later is not None or form.states is not None:
            raise  # such a model is not cut
        raise _in_terms_of_generators(error) from None
    stages = () if plan is None else decoder_stages(graph, form)
    parts = [digest(sorted(map(str, graph.tasks)))]
    call = None
    if encoder is not None:
        other, others, couples = _stages(encoder.facts, [encoder.form.states.name])
        supplies, is_coupled = [*supplies, *others], is_coupled or couples
        call = EncoderCall(encoder.form, call_of(other), encoder.start)
        parts += [digest(sorted(map(str, other.tasks))), str(encoder.start)]
    first = None
    if later is not None:
        begin, others, couples = _stages(facts, form.outputs)
        supplies, is_coupled = [*supplies, *others], is_coupled or couples
        first = call_of(begin)
        parts.append(digest(sorted(map(str, begin.tasks))))
    name = tokenizer_name(content)
    kind = PromptWriter
    if encoder is not None and isinstance(encoder.form, ArrayEncoderForm):
        kind = ArrayWriter
    writer = kind(
        graph, form, options, rows, is_coupled, name, digest(parts), call, genai, stages, first
    )
    text: Any = delayed(content, name=f"tokenizer-{name or 'none'}", traverse=False)
    return GenerationRequest(writer, text, tuple(supplies))


def _in_terms_of_generators(error: PlanError) -> PlanError:
    """Return the error of a decoder that does not fit a worker with the generator's own way out."""
    count = error.numbers.get("fewest_stages")
    if count is None or not error.suggestions:
        return error
    return PlanError(
        error.cause,
        f"cut the decoder: dx.Generator(model, n_stages={count:.0f}); or give workers more memory",
        option="n_stages",
        stage=error.stage,
        numbers=error.numbers,
        suggestions=[Suggestion("n_stages", int(count))],
    )


def decoder_stages(graph: InlineGraph, form: DecoderForm) -> tuple[DecoderStage, ...]:
    """Return the stages of a decoder with the cache that each of them keeps, in running order.

    Raises
    ------
    PlanError
        A tensor of the cache is read by another stage than the one that returns it.
    """
    calls = list(calls_of(graph))
    made = {spec.name: call.stage.label for call in calls for spec in call.stage.outputs}
    for tensor in form.cache:
        readers = [c.stage.label for c in calls if tensor.past in {s.name for s in c.stage.inputs}]
        others = [label for label in readers if label != made[tensor.present]]
        if others or not readers:
            raise PlanError(
                f"input {tensor.past!r} of the cache is read by "
                f"{', '.join(others) or 'no stage'}, and {tensor.present!r} returned by "
                f"{made[tensor.present]}: a stage keeps the cache that it reads",
                "cut between layers: give n_stages, or plan=model.plan(dx.at_values([...]))",
                option="plan",
                input=tensor.past,
                suggestions=[Suggestion("n_stages", len(calls))],
            )
    known = {name for call in calls for name in _names(call)} - set(made)
    ordered: list[DecoderStage] = []
    while calls:
        call = next(call for call in calls if known.issuperset(_names(call)))
        calls.remove(call)
        outputs = {spec.name for spec in call.stage.outputs}
        known |= outputs
        ordered.append(DecoderStage(call, tuple(t for t in form.cache if t.present in outputs)))
    return tuple(ordered)


def _names(call: StageCall) -> list[str]:
    return [spec.name for spec in call.stage.inputs]


def _stages(
    facts: ModelFacts, outputs: Sequence[str], plan: Any = None
) -> tuple[InlineGraph, list[Delayed], bool]:
    """Return a model's stages, which are one without a plan, their supplies, and whether rows of a
    batch change each other."""
    request = partition_request(facts, RunOptions(list(outputs), None, plan), may_be_cut=True)
    stages = request.stages.stages
    others = [stage for stage in stages if stage.kernel != "onnxruntime"]
    if others or (plan is None and len(stages) > 1):
        label = (others or stages)[0].label
        raise ModelError(
            f"the model runs as {len(stages)} stages on several kernels, of which {label} is one: "
            "its cache cannot stay in one session",
            "generation needs a model that onnxruntime runs as a whole",
            stage=label,
            numbers={"stages": len(stages)},
        )
    names = [spec.name for spec in request.stages.inputs]
    graph = inline_graph(request, names, outputs)
    return graph, supply_collections(request), bool(request.batch.coupled)
