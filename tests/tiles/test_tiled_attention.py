"""Attention over pixels by tiles, compared with ONNX Runtime on the untiled image."""

from __future__ import annotations

import numpy as np
import pytest
from builders import node
from tiles.tiled_models import (
    CONSTANTS,
    assert_equals_untiled,
    attention_block,
    conv,
    kernel,
    model_of,
    random_image,
    vision_transformer,
)

import dask_onnx as dx
from dask_onnx.tiles.predict import predict_tiled


def test_a_vision_transformer_with_few_tokens_runs_them_untiled():
    assert_equals_untiled(vision_transformer(), random_image(1, 3, 36, 44), 12)


def test_a_vision_transformer_with_many_tokens_runs_in_blocks_of_queries():
    proto = vision_transformer()
    assert_equals_untiled(proto, random_image(1, 3, 36, 44), 12, memory_limit=60_000)


def test_memory_too_small_for_the_keys_and_values_is_refused():
    with pytest.raises(dx.InputError) as caught:
        predict_tiled(
            dx.load(vision_transformer()), random_image(1, 3, 36, 44), tile=12, memory_limit=2_000
        )
    assert caught.value.option == "tile"
    assert caught.value.numbers["limit_bytes"] == 2_000
    assert caught.value.numbers["needed_bytes"] > 2_000


def test_a_class_token_makes_the_rest_of_the_model_run_untiled():
    constants = {
        "patches": kernel(8, 3, 4, 4), "flat": np.array([0, 8, -1]), "class": kernel(1, 1, 8),
        "first": np.array(0), "m": kernel(8, 3),
    }  # fmt: skip
    nodes = [
        conv("x patches", "p", strides=[4, 4]),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "class t", "t0", axis=1),
        *attention_block("t0", "t1", 8, 2, constants),
        node("Gather", "t1 first", "c", axis=1),
        node("MatMul", "c m", "y"),
    ]
    proto = model_of(nodes, constants, inputs=(1, 3, "H", "W"))
    assert_equals_untiled(proto, random_image(1, 3, 36, 44), 12)


def test_an_embedding_that_is_resized_to_the_image_is_cut_like_its_tokens():
    constants = {
        "patches": kernel(8, 3, 4, 4), "flat": np.array([0, 8, -1]),
        "embedding": kernel(1, 8, 5, 5), "two": np.array([2]), "four": np.array([4]),
        "zero": np.array([0]), "front": np.array([1, 8]),
    }  # fmt: skip
    nodes = [
        conv("x patches", "p", strides=[4, 4]),
        node("Shape", "p", "shape"),
        node("Slice", "shape two four zero", "space"),
        node("Concat", "front space", "grid", axis=0),
        node("Resize", "embedding - - grid", "e", mode="cubic"),
        node("Reshape", "e flat", "e1"),
        node("Reshape", "p flat", "f"),
        node("Add", "f e1", "g"),
        node("Reshape", "g grid", "h"),
        conv("h v", "y", pads=[1] * 4),
    ]
    constants["v"] = kernel(2, 8, 3, 3)
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 36, 44), 12)


def test_window_attention_has_exact_tiles():
    # Reshapes cut the image into windows of 4 x 4 pixels, with attention inside each window.
    constants = {
        "m": kernel(3, 3), "v": kernel(3, 3, 3, 3), "tokens": np.array([-1, 16, 3]),
        "four": np.array([4]), "two": np.array([2]), "three": np.array([3]),
        "one": np.array([1]), "hw": np.array([2, 3]),
    }  # fmt: skip
    nodes = [
        conv("x v", "a", pads=[1] * 4),
        node("Shape", "a", "shape"),
        node("Gather", "shape hw", "space", axis=0),
        node("Div", "space four", "windows"),
        node("Gather", "windows zero_", "rows", axis=0),
        node("Gather", "windows one", "columns", axis=0),
        node("Concat", "one three rows four columns four", "apart", axis=0),
        node("Reshape", "a apart", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", "c tokens", "d"),
        node("MatMul", "d m", "q"),
        node("Transpose", "d", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "share", axis=-1),
        node("MatMul", "share d", "e"),
        node("Concat", "one rows columns four four three", "back", axis=0),
        node("Reshape", "e back", "f"),
        node("Transpose", "f", "g", perm=[0, 5, 1, 3, 2, 4]),
        node("Concat", "one three space", "whole", axis=0),
        node("Reshape", "g whole", "h"),
        conv("h v", "y", pads=[1] * 4),
    ]
    constants["zero_"] = np.array([0])
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 32, 48), 12)


def test_products_of_channels_over_all_pixels_equal_the_untiled_result():
    nodes = [
        conv("x w", "a", pads=[1] * 4),
        node("Reshape", "a flat", "b"),
        node("Transpose", "b", "t", perm=[0, 2, 1]),
        node("MatMul", "b t", "gram"),
        node("Softmax", "gram", "share", axis=-1),
        node("MatMul", "share b", "c"),
        node("Shape", "a", "shape"),
        node("Reshape", "c shape", "d"),
        conv("d w", "y", pads=[1] * 4),
    ]
    constants = {**CONSTANTS, "flat": np.array([0, 3, -1])}
    assert_equals_untiled(model_of(nodes, constants), random_image(1, 3, 32, 40), 16)
