from __future__ import annotations

import functools
import tempfile

import decoder_models
import onnx
import pytest

import dask_onnx as dx
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.generation.batch_loop import BatchLoop, Limits, Row
from dask_onnx.generation.decoder_form import recognise_decoder
from dask_onnx.generation.decoder_trials import open_decoder
from dask_onnx.generation.generation_options import GenerationOptions
from dask_onnx.generation.generation_requests import make_request
from dask_onnx.generation.sampling import Sampling


def _quantized():
    """Return a decoder whose activations share one scale over all rows of a batch."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/float.onnx", f"{folder}/int8.onnx"
        onnx.save(decoder_models.gpt2_like(), source)
        quantize_dynamic(source, target)
        return onnx.load(target)


FORMS = {
    "quantized": functools.cache(_quantized),
    "gpt2": decoder_models.gpt2_like,
    "llama": decoder_models.llama_like,
    "merged": decoder_models.merged,
    "no cache": decoder_models.without_cache,
    "no mask": lambda: decoder_models.gpt2_like(masks=False, positions=False),
    "no positions": lambda: decoder_models.gpt2_like(positions=False),
}


@functools.cache
def _loaded(kind):
    model = dx.load(FORMS[kind]())
    form = recognise_decoder(model.inputs, model.outputs)
    options = GenerationOptions(Limits(1), Sampling())
    return make_request(model._facts, form, options, RowOptions(), None)


@pytest.fixture
def open_form(store_directory):
    """Function from the name of a form to a decoder in this process, and its proto."""

    def open_form(kind):
        request = _loaded(kind)
        return open_decoder(request.writer.form, request.writer.call, ()), FORMS[kind]()

    return open_form


@pytest.fixture
def write():
    """Function that writes rows with a decoder, and returns them."""

    def write(decoder, prompts, limits, max_rows=8, sampling=None, **options):
        rows = [Row(prompt, number) for number, prompt in enumerate(prompts)]
        BatchLoop(decoder, sampling or Sampling(), limits, max_rows, **options).write(rows)
        return rows

    return write
