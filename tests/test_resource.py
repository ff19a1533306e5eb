"""Resource attributes."""

from __future__ import annotations

import pytest

from otel_tracking.records import Rank
from otel_tracking.resource import resource


def test_the_rank_and_the_project() -> None:
    assert resource("bert", Rank(rank=3, world_size=8, local_rank=1, node_rank=1)) == {
        "service.name": "bert",
        "training.rank": 3,
        "training.world_size": 8,
        "training.local_rank": 1,
        "training.node_rank": 1,
    }


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision,training.rank=7,service.name=a")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "b")
    found = resource("bert", Rank())
    assert (found["team"], found["service.name"]) == ("vision", "b")
    assert found["training.rank"] == 0
