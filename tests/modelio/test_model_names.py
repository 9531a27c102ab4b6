"""Names of models that tell models of one exporter apart."""

from __future__ import annotations

import pytest
from builders import dense_model, weights
from onnx import numpy_helper

import dask_onnx as dx
from dask_onnx.modelio.model_names import model_name

HUB = "/cache/hub/models--acme--tiny-bert/snapshots/0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/yolo.onnx", "yolo"),
        ("/models/ch_PP-OCRv4_det/inference.onnx", "ch_PP-OCRv4_det"),
        ("/triton/resnet50/1/model.onnx", "resnet50"),
        ("/data/unet/model.onnx", "unet"),
        (f"{HUB}/model.onnx", "tiny-bert"),
        (f"{HUB}/onnx/model.onnx", "tiny-bert"),
        (f"{HUB}/onnx/model_int8.onnx", "tiny-bert_model_int8"),
        (f"{HUB}/onnx/decoder_model_merged.onnx", "tiny-bert_decoder_model_merged"),
        ("hf://acme/tiny-bert/onnx/model.onnx", "tiny-bert"),
        ("s3://bucket/detector/v3/model.onnx", "detector"),
        ("https://host/text.onnx", "text"),
        ("/model.onnx", "model"),
        ("/models/onnx/model.onnx", "model"),
    ],
)
def test_the_file_names_the_model_or_its_folder(path, expected):
    assert model_name("main_graph", path, "abcdef0123") == expected


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("resnet50", "resnet50"),
        ("main_graph", "main_graph_abcdef"),
        ("torch_jit", "torch_jit_abcdef"),
        ("Model from PaddlePaddle.", "Model from PaddlePaddle._abcdef"),
        ("tf2onnx", "tf2onnx_abcdef"),
        ("", "model_abcdef"),
    ],
)
def test_a_graph_name_that_exporters_share_gets_a_part_of_the_token(graph, expected):
    assert model_name(graph, None, "abcdef0123") == expected


def test_two_models_in_memory_of_one_exporter_have_two_names():
    one, other = dense_model(), dense_model()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(8, 32, seed=9), "W1"))
    for each in (one, other):
        each.graph.name = "main_graph"
    first, second = dx.load(one), dx.load(other)
    assert first.name != second.name
    assert first.name == dx.load(one.SerializeToString()).name
    labels = {model.plan("whole").stages[0].label for model in (first, second)}
    assert len(labels) == 2
    assert dx.load(one, name="given").name == "given"
