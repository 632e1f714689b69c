"""What the documents promise is there: every citation leads to a section, every link to a file."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_citation_of_the_method_leads_to_a_section() -> None:
    titles = set(re.findall(r"^## (.*)$", (ROOT / "docs" / "method.md").read_text(), flags=re.M))
    cited = 0
    for folder in ("src", "synthetic", "training", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = " ".join(path.read_text().split())
            for rest in re.findall(r"docs/method\.md, ([A-Z][^().:;\"]*)", text):
                cited += 1
                assert any(rest.startswith(title) for title in titles), f"{path}: {rest!r}"
    assert cited > 20


def test_every_link_leads_to_a_file() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
