"""Small random models of the transformers package for `torch_exports.py`, where it is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch_models import BATCH, Case, Feeds, case, integers, named, normal


class Wrapped(nn.Module):
    """A model of the transformers package with positional inputs and chosen outputs."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.wanted = model, inputs, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name] for name in self.wanted)


def _ids_and_mask(ids: str, mask: str) -> Callable[[int, np.random.Generator], Feeds]:
    def feeds(rows: int, rng: np.random.Generator) -> Feeds:
        counted = np.arange(7) < rng.integers(2, 8, (rows, 1))
        return {ids: rng.integers(2, 60, (rows, 7)), mask: counted.astype(np.int64)}

    return feeds


def _of_transformers(kind: str, outputs: tuple[str, ...], **sizes: Any) -> nn.Module:
    import transformers

    names = {
        "bert": ("BertConfig", "BertModel", ("input_ids", "attention_mask")),
        "gpt2": ("GPT2Config", "GPT2LMHeadModel", ("input_ids", "attention_mask")),
        "t5": (
            "T5Config",
            "T5ForConditionalGeneration",
            ("input_ids", "attention_mask", "decoder_input_ids"),
        ),
        "whisper": (
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            ("input_features", "decoder_input_ids"),
        ),
        "vit": ("ViTConfig", "ViTModel", ("pixel_values",)),
    }
    config, model, inputs = names[kind]
    settings = getattr(transformers, config)(**sizes, attn_implementation="eager")
    settings.use_cache = False
    return Wrapped(getattr(transformers, model)(settings).eval(), inputs, outputs)


def _tokens() -> dict[int, str]:
    return {0: "batch", 1: "time"}


def transformers_bert() -> Case:
    make = functools.partial(
        _of_transformers,
        "bert",
        ("last_hidden_state", "pooler_output"),
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    axes = {"input_ids": _tokens(), "attention_mask": _tokens(), "h": _tokens(), "pooled": BATCH}
    return Case(make, _ids_and_mask("input_ids", "attention_mask"), axes, ("h", "pooled"))


def transformers_gpt2() -> Case:
    make = functools.partial(
        _of_transformers,
        "gpt2",
        ("logits",),
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
    )
    axes = {"input_ids": _tokens(), "attention_mask": _tokens(), "y": _tokens()}
    return Case(make, _ids_and_mask("input_ids", "attention_mask"), axes)


def transformers_t5() -> Case:
    make = functools.partial(
        _of_transformers,
        "t5",
        ("logits",),
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    first = _ids_and_mask("input_ids", "attention_mask")

    def feeds(rows: int, rng: np.random.Generator) -> Feeds:
        return {**first(rows, rng), "decoder_input_ids": rng.integers(0, 60, (rows, 3))}

    decoder = {0: "batch", 1: "decoded"}
    axes = {
        "input_ids": _tokens(),
        "attention_mask": _tokens(),
        "decoder_input_ids": decoder,
        "y": decoder,
    }
    return Case(make, feeds, axes)


def transformers_whisper() -> Case:
    make = functools.partial(
        _of_transformers,
        "whisper",
        ("logits",),
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    axes = {"input_features": BATCH, "decoder_input_ids": BATCH, "y": BATCH}
    feeds = named(input_features=normal(0, 8, 40), decoder_input_ids=integers(60, 0, 3))
    return Case(make, feeds, axes)


def transformers_vit() -> Case:
    make = functools.partial(
        _of_transformers,
        "vit",
        ("last_hidden_state",),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
    )
    return Case(make, named(pixel_values=normal(0, 3, 32, 32)), {"pixel_values": BATCH, "y": BATCH})


if importlib.util.find_spec("transformers") is not None:
    for _make in (
        transformers_bert,
        transformers_gpt2,
        transformers_t5,
        transformers_whisper,
        transformers_vit,
    ):
        case(_make)
