"""Text of recognition models: alphabets, repeated steps, blanks."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_model, node, value
from image_models import with_metadata

import dask_onnx as dx
from dask_onnx.collections.images.ctc_text import characters_of, lines_of, read_text

PICTURE = np.zeros((48, 320, 3), np.uint8)


def recogniser(steps, classes, *, metadata=None, softmax=True):
    """Return a model whose best class at each step is given."""
    scores = np.full((1, len(steps), classes), -4, np.float32)
    scores[0, np.arange(len(steps)), steps] = 4
    nodes = [
        node("ReduceMax", "x", "most", axes=[1, 2, 3], keepdims=1),
        node("Squeeze", "most three", "flat"),
        node("Mul", "flat zero", "nothing"),
        node("Add", "scores nothing", "logits"),
    ]
    if softmax:
        nodes.append(node("Softmax", "logits", "y", axis=2))
    proto = make_model(
        nodes,
        [value("x", ("N", 3, 48, "W"))],
        [value("y" if softmax else "logits", ("N", len(steps), classes))],
        {"scores": scores, "zero": np.array(0, np.float32), "three": np.array([3])},
    )
    return dx.load(with_metadata(proto, metadata or {}))


@pytest.mark.parametrize("softmax", [True, False])
def test_repeated_steps_are_one_character_unless_a_blank_parts_them(softmax):
    steps = [0, 1, 1, 0, 1, 2, 4, 0, 3]
    model = recogniser(steps, 5, metadata={"character": "a\nb\n語"}, softmax=softmax)
    image = dx.ImageModel(model)
    assert image.task == "text" and "text" in repr(image)
    found = image.predict(PICTURE)
    assert found.text == "aab 語"  # the last class is a space
    sure = np.exp(4) / (np.exp(4) + 4 * np.exp(-4))
    np.testing.assert_allclose(found.scores, [sure] * 5, rtol=1e-5)
    table = image.predict(np.stack([PICTURE, PICTURE]))
    assert [each.text for each in table] == ["aab 語", "aab 語"]


def test_an_alphabet_can_be_given(tmp_path):
    file = tmp_path / "alphabet.txt"
    file.write_text("a\nb\n\u3000\n", encoding="utf-8")
    options = {"preset": "paddleocr-rec", "task": "text"}
    model = recogniser([1, 0, 3], 4)
    for alphabet in (file, str(file), ["a", "b", "\u3000"]):
        assert dx.ImageModel(model, alphabet=alphabet, **options).predict(PICTURE).text == "a\u3000"
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(model, **options)
    assert caught.value.option == "alphabet"
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(model, alphabet=["a"], **options)
    assert caught.value.numbers == {"classes": 4, "characters": 1}
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(model, alphabet=tmp_path / "none.txt", **options)
    assert caught.value.option == "alphabet"


def test_blanks_and_nothing_are_no_text():
    characters = characters_of(("a", "b"), 3)
    assert characters == ("", "a", "b")
    text, scores = read_text(np.array([[1.0, 0, 0], [1, 0, 0]]), characters)
    assert text == "" and scores.shape == (0,)
    assert read_text(np.empty((0, 3)), characters)[0] == ""
    assert lines_of("a\r\n \r\nb\n") == ("a", " ", "b")
