"""The tutorial's sweep: W&B's agent runs the training, and W&B's server stands on loopback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_tracking_exporters._wandb_mapping import STEP
from tests.tutorial import wandb_api
from tests.tutorial.wandb_api import WandbApi

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TRIALS = [
    {"learning_rate": 1e-4, "batch_size": 16},
    {"learning_rate": 5e-4, "batch_size": 32},
    {"learning_rate": 1e-3, "batch_size": 64},
]

SWEEP = """
import json
import os
import torch
import wandb
from torch.utils.data import DataLoader, TensorDataset
from wandb.agents.pyagent import Agent
from otel_tracking.integrations.accelerate import Accelerator

Agent.HEARTBEAT_SLEEP_SECONDS = 0.1  # W&B's own is 5
inputs = torch.randn(64, 4)
dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
logged = open("logged.jsonl", "w", buffering=1)

sweep_config = {
    "method": "bayes",
    "parameters": {
        "learning_rate": {"min": 1e-5, "max": 1e-3},
        "batch_size": {"values": [16, 32, 64]},
    },
}
sweep_id = wandb.sweep(sweep_config, project="my_project")

def train(accelerator, config):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    dataloader = DataLoader(dataset, batch_size=config.batch_size)
    model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)
    for step, (inputs, labels) in enumerate(dataloader):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"train/loss": loss.item()}, step=step)
        print(json.dumps([os.environ["WANDB_RUN_ID"], step, loss.item()]), file=logged)
"""

BLOCK_14 = """
def train_with_sweep():
    wandb.init()
    config = wandb.config

    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("my_project")
    train(accelerator, config)
    accelerator.end_training()

wandb.agent(sweep_id, function=train_with_sweep)
"""

# Without `end_training` a run is finished by its `with` block, or by the agent when the function has
# returned or raised. A trial of a moment is over before its tracker has started, unless one asks for it.
FINISHED_BY_THE_BLOCK = """
def train_with_sweep():
    with wandb.init() as run:
        accelerator = Accelerator(log_with="wandb")
        accelerator.init_trackers("my_project")
        assert accelerator.get_tracker("wandb", unwrap=True) is run
        train(accelerator, run.config)
        if run.config.batch_size == 32:
            raise ValueError("out of luck")

wandb.agent(sweep_id, function=train_with_sweep, count=3)
"""

# Here it is the tracker that begins the run: it finds in the environment which one.
FINISHED_BY_THE_AGENT = """
def train_with_sweep():
    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("my_project")
    config = accelerator.get_tracker("wandb", unwrap=True).config
    train(accelerator, config)
    if config.batch_size == 32:
        raise ValueError("out of luck")

wandb.agent(sweep_id, function=train_with_sweep, count=3)
"""


def swept(run_script: Run, source: str) -> WandbApi:
    """What the server has after a sweep of `TRIALS`: a run each, with what that trial logged."""
    with wandb_api.serving(TRIALS) as api:
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": api.url, "WANDB_API_KEY": wandb_api.API_KEY}
        done = run_script(SWEEP + source, env=online, timeout=100)
    assert api.failures == []
    assert "not delivered" not in done.stderr
    logged = [json.loads(line) for line in Path("logged.jsonl").read_text().splitlines()]
    assert len(logged) == 4 + 2 + 1
    (sweep,) = api.sweeps
    assert [run.hyperparameters for run in api.runs.values()] == TRIALS
    for run in api.runs.values():
        assert (run.project, run.sweep) == ("my_project", sweep)
        assert [[run.id, row[STEP], row["train/loss"]] for row in run.history] == [
            point for point in logged if point[0] == run.id
        ]
    return api


def test_sweeps(run_script: Run) -> None:
    """14: each trial is the one run that the sweep's agent has begun for it. Then the server says `exit`."""
    api = swept(run_script, BLOCK_14)
    assert [run.exit_code for run in api.runs.values()] == [0, 0, 0]
    (sweep,) = api.sweeps.values()
    assert "method: bayes" in sweep["config"]


@pytest.mark.parametrize("source", [FINISHED_BY_THE_BLOCK, FINISHED_BY_THE_AGENT], ids=["block", "agent"])
def test_sweeps_without_the_end_of_training(run_script: Run, source: str) -> None:
    """14, which does not show `end_training`: nothing is missing, and a trial that raised has failed."""
    api = swept(run_script, source)
    assert [run.exit_code for run in api.runs.values()] == [0, 1, 0]
