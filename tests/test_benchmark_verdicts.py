"""The table of `benchmarks.verdicts`, from scenes that were looked at before."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_verdict import scene_evidence, with_view

from benchmarks import verdicts


def row(seed: int, ate: float, error: float = 0.005, registered: int = 8) -> dict[str, Any]:
    """A scene of eight photos as `verdicts.json` has it; the view of one photo reprojects `error` off."""
    evidence = with_view(scene_evidence(), 2, error=error)
    groups = [list(range(registered)), *([k] for k in range(registered, 8))]
    return {
        "set": "orbit", "seed": seed, "ate": ate, "doubts": {}, "pairs": [], "groups": groups,
        "views": [{"registered": k < registered} for k in range(8)],
        "evidence": asdict(evidence) | {"views": [asdict(view) for view in evidence.views[:registered]]},
    }  # fmt: skip


def test_judge_only_prints_what_a_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(2, 0.004),
        row(3, 0.004, error=0.02),
        row(4, 0.02),
        row(5, 0.3, error=0.02),
        row(6, 0.004, registered=6),
        {"set": "mixed", "seed": 2, "error": "no two of the images connect"},
    ]
    (tmp_path / "verdicts.json").write_text(json.dumps(rows))
    verdicts.main(["--output", str(tmp_path), "--judge-only"])
    lines = capsys.readouterr().out.splitlines()
    assert "| all | right | 1 | 1 | 0 |" in lines and "| even seeds | right | 1 | 0 | 0 |" in lines
    assert "| all | between | 1 | 0 | 0 |" in lines and "| odd seeds | wrong | 0 | 1 | 0 |" in lines
    assert "| orbit | right, photos left out | 0 | 1 | 0 |" in lines
    assert "| mixed | nothing came out: 1 | | | |" in lines


def test_judge_only_needs_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verdicts.main(["--output", str(tmp_path), "--judge-only"])
    assert "run without --judge-only first" in capsys.readouterr().err
