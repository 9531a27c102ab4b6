"""The peers of ``benchmarks/peers``: each job of each peer has marked lines of user code."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


def _user_code() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_user_code", PEERS / "user_code.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _functions(peer: str) -> set[str]:
    tree = ast.parse((PEERS / f"peer_{peer}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _peers() -> list[str]:
    return sorted(path.stem.removeprefix("peer_") for path in PEERS.glob("peer_*.py"))


@pytest.mark.parametrize("peer", [peer for peer in _peers() if peer != "process"])
def test_each_job_of_a_peer_has_its_lines_counted(peer: str) -> None:
    user_code = _user_code()
    jobs = _functions(peer) & {"images", "table", "sentences", "large", "picture"}
    assert jobs
    for job in jobs:
        assert 5 < user_code.lines_of(f"peer_{peer}", job) < 100


def test_blank_lines_comments_and_docstrings_do_not_count(tmp_path, monkeypatch) -> None:
    user_code = _user_code()
    (tmp_path / "functions.py").write_text("# user code: shared\nx = 1\n# end\n")
    (tmp_path / "peer_some.py").write_text(
        "# user code: job (shared)\ndef job():\n"
        '    """Text\n\n    more."""\n\n    # why\n    return x\n\n\n# end\n'
    )
    monkeypatch.setattr(user_code, "_HERE", tmp_path)
    assert user_code.lines_of("peer_some", "job") == 3


def test_a_part_that_several_parts_use_counts_once(tmp_path, monkeypatch) -> None:
    user_code = _user_code()
    (tmp_path / "functions.py").write_text("")
    (tmp_path / "peer_some.py").write_text(
        "# user code: a\n1\n# end\n# user code: b (a)\n2\n# end\n# user code: c (a, b)\n3\n# end\n"
    )
    monkeypatch.setattr(user_code, "_HERE", tmp_path)
    assert user_code.lines_of("peer_some", "c") == 3
