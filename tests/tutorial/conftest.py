"""What the tutorial's examples share: Accelerate without state of an earlier test, and a small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


@pytest.fixture
def dataloader() -> DataLoader[tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    return DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=16)


def only_run(project_dir: Path, project: str) -> Path:
    """The directory of the one run of a project."""
    (run,) = (path.parent for path in (project_dir / project).glob("*/run.json"))
    return run
