"""The code of the site's pages and of README runs as it stands, and prints what the pages say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from page_runner import UnexpectedOutputError, run_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(python|bash)$", re.MULTILINE)
_GENERATED = ("_build", "reference/generated", "notebooks")


def pages():
    """Return README and the pages that have code, as paths from the root."""
    found = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    generated = tuple(str(DOCS / name) for name in _GENERATED)
    wanted = [page for page in found if not str(page).startswith(generated)]
    return [str(p.relative_to(ROOT)) for p in wanted if _BLOCK.search(p.read_text())]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _put_encoder(folder, asset):
    """Put down what a reader of the page has: an encoder and its tokenizer."""
    (folder / "minilm").mkdir()
    shutil.copy(asset("minilm.onnx"), folder / "minilm" / "model.onnx")
    shutil.copy(asset("minilm_tokenizer.json"), folder / "minilm" / "tokenizer.json")


def _put_exported_network(folder, asset):
    """Put down a network with the inputs and outputs of the one that the page exports."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> digits (float[N,1,8,8] image)'
        " => (float[N,10] logits) { flat = Flatten(image) logits = MatMul(flat, weight) }"
    )
    weight = np.random.default_rng(0).standard_normal((64, 10)).astype("float32")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(proto, folder / "digits.onnx")


def _put_text_detector(folder, asset):
    """Put down PP-OCR's detector under the page's name."""
    shutil.copy(asset("det.onnx"), folder / "det.onnx")


_PUT = {
    "docs/how_to/images.md": _put_text_detector,
    "docs/start/text_encoder.md": _put_encoder,
    "docs/start/pytorch.md": _put_exported_network,
}
"""Page to the function that writes the files that it reads."""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages())
def test_code_of_a_page_runs_and_prints_what_the_page_says(page, folder, asset):
    if page in _PUT:
        _PUT[page](folder, asset)
    assert run_page(ROOT / page) > 0


def _page(folder, text):
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_a_page_that_says_something_else_fails(folder):
    page = _page(folder, "```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 5") as caught:
        run_page(page)
    assert not isinstance(caught.value, UnexpectedOutputError)


def test_a_block_that_raises_fails_with_its_line(folder):
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(_page(folder, "# Title\n\n```python\n1 / 0\n```\n"))
    assert "line 3" in caught.value.__notes__[0]


def test_a_shell_block_that_fails_fails(folder):
    with pytest.raises(AssertionError, match="exit code 7"):
        run_page(_page(folder, "```bash\nexit 7\n```\n"))


def test_dots_in_output_stand_for_any_text(folder):
    text = "```python\nprint('took 12 s')\n```\n\n```output\ntook ... s\n```\n"
    assert run_page(_page(folder, text)) == 2


def test_a_block_that_is_left_out_leaves_out_no_other(folder):
    left_out = '<!-- skip: next "needs torch" -->\n\n```python\n1 / 0\n```\n'
    run_page(_page(folder, left_out + "\n```python\nopen('ran', 'w').close()\n```\n"))
    assert (folder / "ran").exists()
