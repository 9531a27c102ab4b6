"""The report of links to other sites: what does not answer is told, no network is no fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "link_report.py"


def report(folder, *links):
    lines = [
        json.dumps({"uri": uri, "status": status, "info": info, "filename": "page.md"})
        for uri, status, info in links
    ]
    path = folder / "output.json"
    path.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()


def test_links_that_do_not_answer_are_told_with_their_page(tmp_path):
    links = [("https://a.example", "working", ""), ("https://b.example", "broken", "404")]
    (line,) = report(tmp_path, *links)
    assert "https://b.example" in line
    assert "page.md" in line
    assert "404" in line


def test_no_network_is_told_once(tmp_path):
    info = "Max retries exceeded: NameResolutionError"
    (line,) = report(tmp_path, *[(f"https://{i}.example", "broken", info) for i in range(3)])
    assert line.startswith("no network")
    assert "3" in line


def test_links_that_all_answer_are_one_line(tmp_path):
    assert len(report(tmp_path, ("https://a.example", "working", ""))) == 1
