"""The documents point at what exists and name every variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", ["tutorial", "accelerate"])
def test_tests_that_are_named_exist(document: str) -> None:
    named = re.findall(r"`([a-z_]+\.py)::(test_\w+)`", (ROOT / "docs" / f"{document}.md").read_text())
    assert len(named) > 15
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"\ndef {test}(" in path.read_text(), f"{file}::{test}"


def test_every_variable_is_documented() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "otel_tracking").rglob("*.py"))
    documented = (ROOT / "docs" / "configuration.md").read_text()
    variable = re.compile(r"\bOTEL_TRACKING_[A-Z_]*[A-Z]\b")
    assert set(variable.findall(sources)) == set(variable.findall(documented))
