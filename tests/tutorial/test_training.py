"""The tutorial's training patterns, its distributed examples, and the complete example in all trackers."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from otel_tracking.integrations.accelerate import Accelerator
from tests import readback
from tests.contract.stored import readers
from tests.tutorial.conftest import only_run
from tests.tutorial.test_quick_start import train_step, values

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Loader = DataLoader[tuple[torch.Tensor, ...]]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def points(project: str) -> readback.Points:
    return readback.wandb(only_run(Path("outputs"), project))


def test_on_the_main_process_only() -> None:
    """17, 40."""
    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("main")
    if accelerator.is_main_process:
        Path("custom_log.txt").write_text("Step 0: loss=0.5\n")
    accelerator.log({"train/loss": 0.5}, step=0)
    accelerator.end_training()
    assert values(points("main"), "train/loss") == [(0, 0.5)]


def test_some_steps_only() -> None:
    """18: two rows of one step, both kept."""
    accelerator = Accelerator(log_with="wandb")
    accelerator.init_trackers("some")
    for step in range(201):
        if step % 10 == 0:
            accelerator.log({"train/loss": step / 8}, step=step)
        if step % 100 == 0:
            accelerator.log({"train/loss": step / 8, "train/lr": 0.5, "train/grad_norm": 2.0}, step=step)
    accelerator.end_training()
    found = points("some")
    assert len(found["train/loss"]) == 21 + 3
    assert [step for step, _ in values(found, "train/lr")] == [0, 100, 200]


def test_the_best_model(model: torch.nn.Module) -> None:
    """25: a checkpoint whenever the validation loss falls; the checkpoint says which run it is of."""
    accelerator = Accelerator(log_with="wandb")
    model = accelerator.prepare(model)
    accelerator.init_trackers("best")
    best = float("inf")
    for epoch, loss in enumerate([1.0, 0.5, 0.75, 0.25]):
        accelerator.log({"train/loss": loss * 2, "val/loss": loss}, step=epoch)
        if loss < best:
            best = loss
            accelerator.wait_for_everyone()
            accelerator.save_state("checkpoints/best_model")
            accelerator.log({"best_val_loss": best}, step=epoch)
    run_id = accelerator.tracking.run_id
    accelerator.end_training()
    assert values(points("best"), "best_val_loss") == [(0, 1.0), (1, 0.5), (3, 0.25)]

    again = Accelerator(log_with="wandb")
    again.prepare(model)
    again.load_state("checkpoints/best_model")
    again.init_trackers("best")
    again.log({"train/loss": 0.125}, step=4)
    assert again.tracking.run_id == run_id
    again.end_training()
    assert values(points("best"), "train/loss")[-1] == (4, 0.125)
    assert len(points("best")["train/loss"]) == 5


def test_a_learning_rate_schedule(model: torch.nn.Module, dataloader: Loader) -> None:
    """26: warm-up and linear decay, as `get_linear_schedule_with_warmup` has them."""
    accelerator = Accelerator(log_with="wandb")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 2 if step < 2 else max(0.0, (4 - step) / 2)
    )
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, dataloader, scheduler)
    accelerator.init_trackers("schedule")
    for step, batch in enumerate(batches):
        loss = train_step(accelerator, model, optimizer, batch)
        scheduler.step()
        accelerator.log({"train/loss": loss.item(), "train/lr": scheduler.get_last_lr()[0]}, step=step)
    accelerator.end_training()
    assert values(points("schedule"), "train/lr") == [(0, 0.5), (1, 1.0), (2, 0.5), (3, 0.0)]


def test_gradient_norms(model: torch.nn.Module, dataloader: Loader) -> None:
    """27: between `backward` and the optimizer's step; tensors are taken as they are, too."""
    accelerator = Accelerator(log_with="wandb")
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer, batches = accelerator.prepare(model, optimizer, dataloader)
    accelerator.init_trackers("gradients")
    wanted = []
    for step, (inputs, labels) in enumerate(batches):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        total = sum(p.grad.norm(2).item() ** 2 for p in model.parameters() if p.grad is not None) ** 0.5
        accelerator.log({"train/loss": loss, "train/grad_norm": total}, step=step)
        optimizer.step()
        optimizer.zero_grad()
        wanted.append((step, total))
    accelerator.end_training()
    found = points("gradients")
    assert values(found, "train/grad_norm") == wanted
    assert len(found["train/loss"]) == 4
    assert all(math.isfinite(value) for _, value in values(found, "train/loss"))


def test_two_phases() -> None:
    """28: two runs of two projects, one after the other, by one Accelerator."""
    accelerator = Accelerator(log_with=["wandb", "tensorboard", "mlflow"], project_dir="outputs")
    for phase in ("pretraining", "finetuning"):
        accelerator.init_trackers(phase, config={"phase": phase})
        for epoch in range(3):
            accelerator.log({f"{phase}/loss": epoch / 4}, step=epoch)
        accelerator.end_training()
    for phase in ("pretraining", "finetuning"):
        run = only_run(Path("outputs"), phase)
        for read in (readback.wandb, readback.tensorboard):
            assert {tag: len(found) for tag, found in read(run).items()} == {f"{phase}/loss": 3}
        (stored,) = readback.mlflow_runs(Path("outputs"), phase)
        assert stored.data.params == {"phase": phase}


DISTRIBUTED = """
import sys
import torch
from otel_tracking.integrations.accelerate import Accelerator

accelerator = Accelerator(log_with=["tensorboard", "wandb"], project_dir="outputs", cpu=True)
accelerator.init_trackers("distributed", config={"ranks": accelerator.num_processes})
for step in range(20):
    accelerator.log({"train/loss": step / 8}, step=step)
local = torch.tensor([float(accelerator.process_index + 1)])
everyones = accelerator.gather(local)
if accelerator.is_main_process:
    accelerator.log({"val/accuracy": everyones.mean().item()}, step=0)
blank = accelerator.get_tracker("wandb")
blank.log({"from the main one": 1.0}, step=0)
accelerator.get_tracker("wandb", unwrap=True).summary["seen"] = accelerator.process_index
with accelerator.main_process_first():
    print("rank", accelerator.process_index)
accelerator.end_training()
"""


def test_two_processes(run_script: Run) -> None:
    """21, 22, 23: two real ranks log once, and what `gather` averages is right."""
    run_script(DISTRIBUTED, launcher=TWO)
    run = only_run(Path("outputs"), "distributed")
    for read in (readback.tensorboard, readback.wandb):
        found = read(run)
        assert [step for step, _ in values(found, "train/loss")] == list(range(20))
        assert values(found, "val/accuracy") == [(0, 1.5)]
    assert values(readback.wandb(run), "from the main one") == [(0, 1.0)]


GROUPED = """
from otel_tracking.integrations.accelerate import Accelerator

accelerator = Accelerator(log_with="wandb", cpu=True, tracking={"ranks": "all"})
options = {"group": "experiment_1", "job_type": "train"}
accelerator.init_trackers("grouped", init_kwargs={"wandb": options})
accelerator.log({"rank": float(accelerator.process_index)}, step=0)
accelerator.end_training()
"""


def test_a_run_for_each_process(run_script: Run) -> None:
    """23: with `ranks="all"`, as the tutorial has it of W&B, each process has a run, all in one group."""
    from otel_tracking_exporters._wandb_file import read_wandb

    run_script(GROUPED, launcher=TWO)
    files = sorted(Path("outputs/grouped").rglob("*.wandb"))
    assert len(files) == 2
    runs = [read_wandb(path) for path in files]
    assert {found.run.run_group for found in runs} == {"experiment_1"}
    assert {found.run.job_type for found in runs} == {"train"}
    assert sorted(row["rank"] for found in runs for row in found.history if "rank" in row) == [0.0, 1.0]


COMPLETE = """
import json
import torch
from otel_tracking.integrations.accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

def train():
    accelerator = Accelerator(log_with="all", project_dir="./outputs")
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_dataloader = DataLoader(TensorDataset(inputs[:1500], labels[:1500]), batch_size=32, shuffle=True)
    val_dataloader = DataLoader(TensorDataset(inputs[1500:], labels[1500:]), batch_size=32)
    model, optimizer, train_dataloader = accelerator.prepare(model, optimizer, train_dataloader)
    hparams = {
        "model_name": "digits",
        "learning_rate": 1e-2,
        "batch_size": 32,
        "num_epochs": 3,
        "num_gpus": accelerator.num_processes,
    }
    accelerator.init_trackers(project_name="digits", config=hparams)
    global_step = 0
    for epoch in range(3):
        model.train()
        epoch_loss = 0
        for batch, target in train_dataloader:
            loss = torch.nn.functional.cross_entropy(model(batch), target)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            accelerator.log({
                "train/loss": loss.item(),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "train/epoch": epoch,
            }, step=global_step)
            epoch_loss += loss.item()
            global_step += 1
        accelerator.log({"epoch/avg_loss": epoch_loss / len(train_dataloader)}, step=epoch)
        model.eval()
        val_loss = 0
        with torch.no_grad():
            for batch, target in val_dataloader:
                val_loss += torch.nn.functional.cross_entropy(model(batch), target).item()
        accelerator.log({"val/loss": val_loss / len(val_dataloader)}, step=epoch)
        accelerator.print(f"Epoch {epoch}: val_loss={val_loss / len(val_dataloader):.4f}")
    accelerator.end_training()
    receipt = accelerator.tracking.receipt()
    delivered = {name: tracker.delivered for name, tracker in receipt.trackers.items()}
    print(json.dumps(delivered | {"recorded": receipt.recorded}))

train()
"""


def test_the_complete_example(run_script: Run, tmp_path: Path) -> None:
    """2: in all nine trackers at once; every point is in each, those of epochs included."""
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "CLEARML_CACHE_DIR": str(tmp_path / "clearml")}
    said: dict[str, Any] = json.loads(run_script(COMPLETE, env=environment).stdout.splitlines()[-1])
    recorded = said.pop("recorded")
    assert recorded == 3 * 47 * 3 + 3 + 3
    assert said == dict.fromkeys(readers(), recorded)
    run = only_run(tmp_path / "outputs", "digits")
    journal = readback.journal(run)
    for tracker, reader in readers().items():
        stored = reader.read_run(tmp_path, "outputs", "digits", run.name).points
        for tag, wanted in journal.items():
            found = stored[reader.name(tag)]
            assert sorted(point.step for point in found) == sorted(point.step for point in wanted), (
                tracker,
                tag,
            )
            assert sorted(readback.double(p.value) for p in found) == pytest.approx(
                sorted(readback.double(p.value) for p in wanted), rel=1e-6
            )
