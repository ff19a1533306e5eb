"""Several ranks and processes: real `torchrun`, DataLoader workers, forks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import otel_tracking as ot
from otel_tracking.reading import journals
from tests import readback
from tests.readback import bits

pytestmark = pytest.mark.mlflow_database("outputs")

RunScript = Callable[..., subprocess.CompletedProcess[str]]

LAUNCHER = str(Path(sys.executable).with_name("otel-tracking"))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")

OTEL_ONLY = """
import os
import torch.distributed as dist
from opentelemetry import metrics

rank = int(os.environ["RANK"])
loss = metrics.get_meter("train").create_gauge("loss")
loss.set(float(rank), {"training.step": 0})  # before there is a process group
dist.init_process_group("gloo")
for step in range(1, 20):
    loss.set(step + rank / 10, {"training.step": step})
dist.barrier()
dist.destroy_process_group()
"""


def losses(rank: int) -> list[tuple[int, bytes]]:
    return [(0, bits(float(rank))), *((step, bits(step + rank / 10)) for step in range(1, 20))]


def run_dirs(tmp_path: Path, project: str = "train") -> list[Path]:
    return sorted(path.parent for path in tmp_path.glob(f"outputs/{project}/*/run.json"))


def launch(tmp_path: Path, ranks: str, *, log_with: str = "tensorboard,mlflow,wandb") -> str:
    """OTEL_ONLY on two ranks under the launcher; what it said."""
    script = tmp_path / "train.py"
    script.write_text(OTEL_ONLY)
    done = subprocess.run(
        [
            LAUNCHER,
            "run",
            "--log-with",
            log_with,
            "--project",
            "train",
            "--ranks",
            ranks,
            "--",
            *TORCHRUN,
            "--nproc-per-node",
            "2",
            str(script),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def values(points: readback.Points, tag: str = "loss") -> list[tuple[int, bytes]]:
    return [(p.step, p.value) for p in points[tag]]


def in_mlflow(tmp_path: Path) -> dict[str, list[tuple[int, bytes]]]:
    """The losses of each MLflow run, by the run's rank tag; within a millisecond by step, as recorded."""
    runs = readback.mlflow_runs(tmp_path / "outputs", "train")
    return {
        run.data.tags["training.rank"]: values(readback.mlflow_points(tmp_path / "outputs", run))
        for run in runs
    }


def test_main_leaves_one_run(tmp_path: Path) -> None:
    launch(tmp_path, "main")
    (run,) = run_dirs(tmp_path)
    assert {rank for rank, _ in journals(run)} == {0}
    assert [(s, bits(v)) for s, v in _recorded(run, 0)] == losses(0)
    assert values(readback.wandb(run)) == losses(0)
    assert in_mlflow(tmp_path) == {"0": losses(0)}
    assert values(readback.tensorboard(run)) == [(s, readback.as_float32(v)) for s, v in losses(0)]


def test_all_leaves_two_runs_in_one_group(tmp_path: Path) -> None:
    launch(tmp_path, "all")
    (run,) = run_dirs(tmp_path)
    groups = set()
    for rank in (0, 1):
        of_rank = run / f"rank-{rank}"
        assert values(readback.wandb(of_rank)) == losses(rank)
        assert values(readback.tensorboard(of_rank)) == [(s, readback.as_float32(v)) for s, v in losses(rank)]
        groups.add(readback.wandb_group(of_rank))
    assert groups == {run.name}
    assert in_mlflow(tmp_path) == {"0": losses(0), "1": losses(1)}


def test_a_list_leaves_those_ranks_only(tmp_path: Path) -> None:
    launch(tmp_path, "1")
    (run,) = run_dirs(tmp_path)
    assert {rank for rank, _ in journals(run)} == {1}
    assert values(readback.wandb(run)) == losses(1)
    assert in_mlflow(tmp_path) == {"1": losses(1)}
    assert values(readback.tensorboard(run)) == [(s, readback.as_float32(v)) for s, v in losses(1)]


def test_a_policy_for_each_tracker(tmp_path: Path) -> None:
    launch(tmp_path, "tensorboard=all,*=main", log_with="tensorboard,mlflow")
    (run,) = run_dirs(tmp_path)
    assert in_mlflow(tmp_path) == {"0": losses(0)}
    for rank in (0, 1):
        assert len(readback.tensorboard(run / f"rank-{rank}")["loss"]) == 20


FACADE = """
import os, sys
import torch.distributed as dist
import otel_tracking as ot

tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs", ranks="all")
tracking.init_trackers("train")
tracking.log({"before": float(tracking.rank.rank)}, step=0)
dist.init_process_group("gloo")
for step in range(10):
    tracking.log({"loss": step + tracking.rank.rank / 10}, step=step)
dist.barrier()
tracking.end_training()
receipt = tracking.receipt()
assert receipt.recorded == 11 and receipt.complete, receipt
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def static_nodes(tmp_path: Path) -> None:
    """Two nodes with one rank each, launched as people do by hand: nothing names the run."""
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [
                *TORCHRUN,
                "--nnodes",
                "2",
                "--node-rank",
                str(node),
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                port,
                "--nproc-per-node",
                "1",
                str(tmp_path / "train.py"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    for node in nodes:
        output, _ = node.communicate(timeout=180)
        assert node.returncode == 0, output


def test_two_nodes_twice_are_two_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(FACADE)
    for launches in (1, 2):
        static_nodes(tmp_path)
        runs = run_dirs(tmp_path)
        assert len(runs) == launches
    for run in runs:
        for rank in (0, 1):
            assert [v for _, v in _recorded(run, rank)] == [rank, *(step + rank / 10 for step in range(10))]
            assert len(readback.tensorboard(run / f"rank-{rank}")["loss"]) == 10
    assert not list(tmp_path.glob("outputs/.pending/*"))


def _recorded(run: Path, rank: int) -> list[tuple[int, float]]:
    data = ot.read_run(run / "journal" / f"rank-{rank:05d}")
    return list(zip(data.steps.tolist(), data.values.tolist(), strict=True))


WORKERS = """
import os
import torch
from torch.utils.data import DataLoader, Dataset
import otel_tracking as ot

tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs")
tracking.init_trackers("train")

class Noisy(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        tracking.log({"from/worker": 1.0}, step=index)
        ot_gauge.set(1.0, {"training.step": index})
        return torch.tensor(index)

from opentelemetry import metrics
ot_gauge = metrics.get_meter("workers").create_gauge("from/gauge")
ot_gauge.set(0.0, {"training.step": 0})
step = 0
for _ in range(2):
    for batch in DataLoader(Noisy(), batch_size=8, num_workers=2, multiprocessing_context="fork"):
        tracking.log({"loss": float(batch.sum())}, step=step)
        step += 1
child = os.fork()
if child == 0:
    tracking.log({"from/child": 1.0}, step=0)
    tracking.flush(5)
    tracking.end_training()
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
tracking.log({"loss": -1.0}, step=step)
tracking.end_training()
receipt = tracking.receipt()
assert receipt.recorded == 18 and receipt.complete and not receipt.not_recorded, receipt
"""


def test_workers_and_forks_add_nothing(run_script: RunScript, tmp_path: Path) -> None:
    run_script(WORKERS, timeout=90)
    (run,) = run_dirs(tmp_path)
    stored = readback.tensorboard(run)
    assert {tag: len(points) for tag, points in stored.items()} == {"from/gauge": 1, "loss": 17}
    assert [p.step for p in stored["loss"]] == list(range(17))


OUTLIVED = """
import os, sys, time
import otel_tracking as ot

tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs", run_id="kept")
tracking.init_trackers("train")
start = int(sys.argv[1])
for step in range(start, start + 100):
    tracking.log({"loss": float(step)}, step=step)
if len(sys.argv) > 2:
    child = os.fork()
    if child == 0:  # a worker that does not notice that its trainer is gone
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
tracking.end_training()
assert tracking.receipt().complete, tracking.receipt()
"""


def test_a_worker_that_outlives_its_trainer_does_not_block_a_resume(
    run_script: RunScript, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(OUTLIVED))
    command = [sys.executable, str(script), "0", "die"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        worker = int(trainer.stdout.readline())
        trainer.kill()
    try:
        os.kill(worker, 0)  # it is still there
        run_script(script, "100")
    finally:
        os.kill(worker, signal.SIGKILL)
    (run,) = run_dirs(tmp_path)
    assert [(p.step, p.value) for p in readback.tensorboard(run)["loss"]] == [
        (step, bits(float(step))) for step in range(200)
    ]


def test_ranks_that_can_not_agree_are_told_what_to_do(run_script: RunScript, tmp_path: Path) -> None:
    """Two nodes, no launcher that names the run, and no process group ever."""
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = run_script(
        """
        import otel_tracking as ot
        tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs", ranks="all")
        tracking.init_trackers("train")
        tracking.log({"loss": 1.0}, step=0)
        tracking.end_training(timeout=20)
        """.replace("\n        ", "\n"),
        env=env,
        timeout=60,
    )
    assert "OTEL_TRACKING_RUN_ID" in done.stderr
    (pending,) = tmp_path.glob("outputs/.pending/*")
    assert ot.read_run(pending).values.tolist() == [1.0]
