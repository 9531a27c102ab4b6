"""Requests of generation: the one stage of each model, made ready for tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask.delayed import Delayed, delayed

from dask_onnx.collections.inline import InlineGraph, inline_graph, supply_collections
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.run_options import RowOptions, RunOptions
from dask_onnx.core.errors import ModelError
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_trials import EncoderCall
from dask_onnx.generation.encoder_runs import EncoderForm
from dask_onnx.generation.genai_folders import GenAiFolder
from dask_onnx.generation.generation_options import GenerationOptions
from dask_onnx.generation.prompt_collections import GenerationRequest
from dask_onnx.generation.prompt_writer import PromptWriter, call_of, tokenizer_name


@dataclass(frozen=True, slots=True)
class GivenEncoder:
    """An encoder that a caller has given."""

    facts: ModelFacts
    """Facts of its model."""
    form: EncoderForm
    """Roles of its inputs and outputs."""
    start: int
    """Token that each row of the decoder begins with."""


def make_request(
    facts: ModelFacts,
    form: DecoderForm,
    options: GenerationOptions,
    rows: RowOptions,
    content: bytes | None,
    encoder: GivenEncoder | None = None,
    genai: GenAiFolder | None = None,
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

    Raises
    ------
    ModelError
        Not all nodes of a model run in one session of ONNX Runtime.
    """
    graph, supplies, is_coupled = _one_stage(facts, form.outputs)
    parts = [digest(sorted(map(str, graph.tasks)))]
    call = None
    if encoder is not None:
        other, others, couples = _one_stage(encoder.facts, [encoder.form.states.name])
        supplies, is_coupled = [*supplies, *others], is_coupled or couples
        call = EncoderCall(encoder.form, call_of(other), encoder.start)
        parts += [digest(sorted(map(str, other.tasks))), str(encoder.start)]
    name = tokenizer_name(content)
    writer = PromptWriter(graph, form, options, rows, is_coupled, name, digest(parts), call, genai)
    text: Any = delayed(content, name=f"tokenizer-{name or 'none'}", traverse=False)
    return GenerationRequest(writer, text, tuple(supplies))


def _one_stage(
    facts: ModelFacts, outputs: Sequence[str]
) -> tuple[InlineGraph, list[Delayed], bool]:
    """Return a model's one stage, its supplies, and whether rows of a batch change each other."""
    request = partition_request(facts, RunOptions(list(outputs), None))
    stages = request.stages.stages
    others = [stage for stage in stages if stage.kernel != "onnxruntime"]
    if others or len(stages) > 1:
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
