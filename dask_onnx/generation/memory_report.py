"""The memory of a generation as text: the cache, and the rows of a batch that fit."""

from __future__ import annotations

from dask_onnx.core.formatting import format_bytes, format_count
from dask_onnx.generation.batch_memory import BatchMemory
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.generation_options import GenerationOptions


def describe_memory(
    form: DecoderForm, options: GenerationOptions, prompt_tokens: int, room: int
) -> str:
    """Return a model's form and the memory of its batches as lines of text.

    Parameters
    ----------
    form : DecoderForm
    options : GenerationOptions
    prompt_tokens : int
        Tokens of the longest prompt.
    room : int
        Bytes that the cache of one task may take.
    """
    limits = options.limits
    each = BatchMemory.of(form, prompt_tokens, limits)
    beams = options.rows_of_prompt
    prompts = each.prompts(room, options.batch_rows, beams)
    rows = prompts * beams
    kinds = "" if beams == 1 else f" ({format_count(prompts, 'prompt')} of {beams} beams)"
    lines = [
        form.describe(),
        f"context {_number(limits.context)}; vocabulary {_number(form.vocabulary)}; end tokens "
        f"{', '.join(map(str, limits.eos)) or 'none'}",
        f"cache: {format_bytes(form.cache_bytes_per_token)} for each token of a row, over all "
        f"layers; {format_bytes(each.cache_bytes)} for {format_count(each.tokens, 'token')}",
        f"batch: {format_count(rows, 'row')}{kinds} of {format_bytes(each.row_bytes)} (past, "
        f"present, a copy when rows join, logits), {format_bytes(rows * each.row_bytes)} of the "
        f"{format_bytes(room)} of a task",
    ]
    if each.row_bytes * beams > room:
        lower = "max_new_tokens" if beams == 1 else "max_new_tokens or num_beams"
        lines.append(f"one prompt does not fit: lower {lower}, or give workers more memory")
    return "\n".join(lines)


def _number(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"
