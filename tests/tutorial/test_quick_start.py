"""The tutorial's start, its trackers one by one, its best practices; by the numbers of its blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch.utils.data import DataLoader

from otel_tracking.errors import LoggingDirectoryRequired
from otel_tracking.integrations.accelerate import Accelerator
from otel_tracking_exporters._wandb_file import read_wandb
from otel_tracking_exporters._wandb_mapping import STEP
from tests import readback
from tests.readback import bits
from tests.tutorial import wandb_api
from tests.tutorial.conftest import only_run

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Loader = DataLoader[tuple[torch.Tensor, ...]]


def values(points: readback.Points, tag: str) -> list[tuple[int, float]]:
    return [(point.step, readback.double(point.value)) for point in points[tag]]


def train_step(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, batch: list[torch.Tensor]
) -> torch.Tensor:
    inputs, labels = batch
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def test_minimal_example(model: torch.nn.Module, dataloader: Loader) -> None:
    """1: four calls. The tutorial's own first line lacks the directory that TensorBoard needs: block 38."""
    accelerator = Accelerator(log_with="tensorboard", project_dir="outputs")
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, batches = accelerator.prepare(model, optimizer, dataloader)
    accelerator.init_trackers(project_name="my_experiment")
    losses = []
    for step, batch in enumerate(batches):
        loss = train_step(accelerator, model, optimizer, batch)
        accelerator.log({"train/loss": loss.item()}, step=step)
        losses.append(loss.item())
    accelerator.end_training()
    points = readback.tensorboard(only_run(Path("outputs"), "my_experiment"))
    assert [step for step, _ in values(points, "train/loss")] == [0, 1, 2, 3]
    assert [value for _, value in values(points, "train/loss")] == pytest.approx(losses, rel=1e-6)


def test_tensorboard() -> None:
    """4, 5, 3: the logs lie where `tensorboard --logdir <project_dir>/<project>` looks."""
    accelerator = Accelerator(log_with="tensorboard", project_dir="./logs")
    accelerator.init_trackers("my_project")
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    assert list(Path("logs/my_project").rglob("events.out.tfevents.*"))


def test_wandb() -> None:
    """6: entity, tags and notes go to `wandb.init`; no directory is needed."""
    accelerator = Accelerator(log_with="wandb")
    options = {
        "entity": "my_username",
        "tags": ["experiment_1", "bert"],
        "notes": "Testing hyperparameters",
    }
    accelerator.init_trackers(project_name="my_project", init_kwargs={"wandb": options})
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    found = read_wandb(readback.wandb_file(only_run(Path("outputs"), "my_project"))).run
    assert found.entity == "my_username"
    assert list(found.tags) == ["experiment_1", "bert"]
    assert found.notes == "Testing hyperparameters"


def test_mlflow() -> None:
    """7, 8: name, tags and description; where `mlflow ui`, started here, looks."""
    accelerator = Accelerator(log_with="mlflow")
    options = {
        "run_name": "run_001",
        "tags": {"version": "v1.0", "dataset": "imdb"},
        "description": "Baseline BERT model",
    }
    accelerator.init_trackers(project_name="my_experiment", init_kwargs={"mlflow": options})
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    assert mlflow.get_tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    (run,) = readback.mlflow_runs(Path(), "my_experiment")
    assert run.info.run_name == "run_001"
    assert {key: run.data.tags[key] for key in ("version", "dataset")} == {
        "version": "v1.0",
        "dataset": "imdb",
    }
    assert run.data.tags["mlflow.note.content"] == "Baseline BERT model"


def test_several_trackers() -> None:
    """9, 47: one call logs to both; `flush_secs` is taken, though nothing is buffered."""
    accelerator = Accelerator(log_with=["tensorboard", "wandb"], project_dir="./logs")
    accelerator.init_trackers(
        project_name="multi_tracker_experiment",
        config={"learning_rate": 1e-4, "batch_size": 32},
        init_kwargs={"tensorboard": {"flush_secs": 60}, "wandb": {"tags": ["multi_tracker"]}},
    )
    accelerator.log({"train/loss": 0.5}, step=100)
    accelerator.end_training()
    run = only_run(Path("logs"), "multi_tracker_experiment")
    for read in (readback.tensorboard, readback.wandb):
        (point,) = read(run)["train/loss"]
        assert (point.step, point.value) == (100, bits(0.5))
    config = read_wandb(readback.wandb_file(run)).config
    assert (config["learning_rate"], config["batch_size"]) == (1e-4, 32)


def test_a_complete_workflow(model: torch.nn.Module, dataloader: Loader) -> None:
    """24: prepare, then trackers, training, validation at the last step, end."""
    accelerator = Accelerator(log_with=["tensorboard", "wandb"], project_dir="./outputs")
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, batches = accelerator.prepare(model, optimizer, dataloader)
    accelerator.init_trackers("my_project", config={"learning_rate": 1e-4, "batch_size": 32})
    for step, batch in enumerate(batches):
        loss = train_step(accelerator, model, optimizer, batch)
        accelerator.log({"train/loss": loss.item()}, step=step)
    accelerator.log({"val/loss": 0.25}, step=step)
    accelerator.end_training()
    points = readback.wandb(only_run(Path("outputs"), "my_project"))
    assert len(points["train/loss"]) == 4
    assert values(points, "val/loss") == [(3, 0.25)]


def test_offline_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """19, 41: the variable that W&B itself knows; `wandb sync` then uploads the folder, every point of it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("my_project", config={"lr": 0.1})
    for step in range(5):
        accelerator.log({"loss": step / 4}, step=step)
    accelerator.end_training()
    (folder,) = Path("outputs").glob("my_project/*/wandb/offline-run-*")
    with wandb_api.serving() as api:
        subprocess.run(
            [Path(sys.executable).with_name("wandb"), "sync", folder],
            env={**os.environ, "WANDB_BASE_URL": api.url, "WANDB_API_KEY": wandb_api.API_KEY},
            check=True,
            timeout=60,
        )
    assert api.failures == []
    (uploaded,) = api.runs.values()
    assert uploaded.id == only_run(Path("outputs"), "my_project").name
    assert [(row[STEP], row["loss"]) for row in uploaded.history] == [(step, step / 4) for step in range(5)]
    assert uploaded.hyperparameters["lr"] == 0.1
    assert uploaded.exit_code == 0


def test_local_mlflow() -> None:
    """20, 42: a local directory. MLflow keeps no bare file store any more: beside `mlruns` lies a database.

    The experiment that the tutorial's last chapter has people make beforehand is made if it is missing.
    """
    accelerator = Accelerator(log_with="mlflow")
    accelerator.init_trackers("my_project", init_kwargs={"mlflow": {"logging_dir": "./mlruns"}})
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    experiment = client.get_experiment_by_name("my_project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"loss": 0.5}


def test_an_mlflow_experiment_that_exists(run_script: Run) -> None:
    """42: looked for and made by hand, as the tutorial has it; ours goes into it."""
    source = """
import mlflow
from otel_tracking.integrations.accelerate import Accelerator

assert [experiment.name for experiment in mlflow.search_experiments()] == ["Default"]
made = mlflow.create_experiment("my_experiment", artifact_location="./mlruns")
accelerator = Accelerator(log_with="mlflow")
accelerator.init_trackers("my_experiment", config={"lr": 0.1})
accelerator.log({"loss": 0.5}, step=0)
accelerator.end_training()
(run,) = mlflow.search_runs([made], output_format="list")
assert run.data.metrics == {"loss": 0.5}
assert run.data.params == {"lr": "0.1"}
"""
    run_script(source)


def test_a_tracker_that_is_not_installed(run_script: Run) -> None:
    """36, 37: the tutorial's sentence, and what to install."""
    source = """
import sys
sys.modules["wandb"] = None
from otel_tracking.errors import TrackerNotInstalled
from otel_tracking.integrations.accelerate import Accelerator
try:
    Accelerator(log_with="wandb")
except TrackerNotInstalled as error:
    print(error)
"""
    said = run_script(source).stdout
    assert "Tried adding logger wandb, but package is unavailable in the system." in said
    assert "pip install 'otel-tracking[wandb]'" in said


def test_a_tracker_without_its_directory() -> None:
    """38, 39: the tutorial's error, and its solution."""
    expected = "Logging with `tensorboard` requires a `logging_dir` to be passed in."
    with pytest.raises(ValueError, match=expected) as raised:
        Accelerator(log_with="tensorboard")
    assert isinstance(raised.value, LoggingDirectoryRequired)
    Accelerator(log_with="tensorboard", project_dir="./outputs")


def test_prefixes() -> None:
    """43: metrics of several groups in one row."""
    accelerator = Accelerator(log_with="tensorboard", project_dir="outputs")
    accelerator.init_trackers("prefixes")
    row = {
        "train/loss": 0.5,
        "train/accuracy": 0.75,
        "val/loss": 0.625,
        "val/accuracy": 0.5,
        "system/gpu_memory": 1024.0,
        "system/learning_rate": 0.125,
    }
    accelerator.log(row, step=7)
    accelerator.end_training()
    points = readback.tensorboard(only_run(Path("outputs"), "prefixes"))
    assert {tag: values(points, tag) for tag in row} == {tag: [(7, value)] for tag, value in row.items()}


def test_hyperparameters() -> None:
    """44: the configuration at the start, in a tracker that compares runs by it."""
    config = {
        "model": "bert-base-uncased",
        "learning_rate": 1e-4,
        "batch_size": 32,
        "num_epochs": 3,
        "optimizer": "AdamW",
        "weight_decay": 0.01,
        "warmup_steps": 100,
    }
    accelerator = Accelerator(log_with=["mlflow", "wandb"], project_dir="outputs")
    accelerator.init_trackers("my_project", config=config)
    accelerator.end_training()
    (run,) = readback.mlflow_runs(Path("outputs"), "my_project")
    assert run.data.params == {key: str(value) for key, value in config.items()}
    stored = read_wandb(readback.wandb_file(only_run(Path("outputs"), "my_project"))).config
    assert {key: stored[key] for key in config} == config


def test_step_granularity() -> None:
    """45: steps of two kinds in one run: by iteration for one series, by epoch for another."""
    accelerator = Accelerator(log_with=["tensorboard", "wandb"], project_dir="outputs")
    accelerator.init_trackers("steps")
    for epoch in range(3):
        for batch in range(10):
            accelerator.log({"train/loss": batch / 8}, step=epoch * 10 + batch)
        accelerator.log({"epoch/loss": epoch / 4}, step=epoch)  # W&B itself would drop these
    accelerator.end_training()
    run = only_run(Path("outputs"), "steps")
    for read in (readback.tensorboard, readback.wandb):
        points = read(run)
        assert [step for step, _ in values(points, "train/loss")] == list(range(30))
        assert values(points, "epoch/loss") == [(0, 0.0), (1, 0.25), (2, 0.5)]


def test_end_training_after_a_crash(run_script: Run, tmp_path: Path) -> None:
    """46: `finally` ends the run; a run that nobody ends is ended all the same, and both as failed."""
    source = """
import sys
from otel_tracking.integrations.accelerate import Accelerator
accelerator = Accelerator(log_with="mlflow")
accelerator.init_trackers("crashed")
try:
    accelerator.log({"loss": 0.5}, step=0)
    raise RuntimeError("boom")
finally:
    if sys.argv[1] == "finally":
        accelerator.end_training()
"""
    for how in ("finally", "nothing"):
        assert run_script(source, how, check=False).returncode == 1
    runs = readback.mlflow_runs(tmp_path, "crashed")
    assert sorted(run.info.status for run in runs) == ["FAILED", "FAILED"]
    assert all(run.data.metrics == {"loss": 0.5} for run in runs)


def test_a_variable_names_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the tutorial: no name in the code at all."""
    monkeypatch.setitem(os.environ, "OTEL_TRACKING_LOG_WITH", "tensorboard")
    accelerator = Accelerator()
    accelerator.init_trackers("by_environment")
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    assert readback.tensorboard(only_run(Path("outputs"), "by_environment"))["loss"]
