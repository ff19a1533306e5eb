import logging
import subprocess
import sys

import numpy as np
import pytest

from otel_tracking import ranks
from otel_tracking.errors import ConfigurationError, UnknownTracker
from otel_tracking.ranks import detect, parse
from otel_tracking.records import Rank


def srun(procid: int, tasks: int, localid: int, per_node: str, node: int, **more: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_PROCID": str(procid),
        "SLURM_LOCALID": str(localid),
        "SLURM_NODEID": str(node),
        **more,
    }


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
}
# What SLURM sets in a batch script's own shell, and in the shell of `salloc`.
BATCH = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
SALLOC = srun(0, 1, 0, "1", 0, SLURM_STEP_ID=str(0xFFFFFFFA))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Rank(0, 1, 0, 1, 0, "single")),
        (TORCHRUN, Rank(3, 4, 1, 2, 1, "torchrun")),
        (
            # DeepSpeed's launcher
            {
                "RANK": "5",
                "WORLD_SIZE": "8",
                "LOCAL_RANK": "1",
                "LOCAL_SIZE": "4",
                "CROSS_RANK": "1",
                "CROSS_SIZE": "2",
                "MASTER_ADDR": "10.0.0.1",
            },
            Rank(5, 8, 1, 4, 1, "deepspeed"),
        ),
        # by hand: on one machine, on machines of their own, and with a place on the node
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, Rank(1, 2, 1, 2, 0, "env")),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, Rank(1, 2, 0, 1, 1, "env")),
        (
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            Rank(2, 4, 0, 2, 1, "env"),
        ),
        (OPENMPI, Rank(3, 4, 1, 2, 1, "openmpi")),
        # `mpirun --map-by node` deals the ranks out like cards
        (
            OPENMPI | {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Rank(2, 4, 1, 2, 0, "openmpi"),
        ),
        (
            {
                "MV2_COMM_WORLD_RANK": "1",
                "MV2_COMM_WORLD_SIZE": "2",
                "MV2_COMM_WORLD_LOCAL_RANK": "1",
                "MV2_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Rank(1, 2, 1, 2, 0, "mvapich2"),
        ),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"},
            Rank(2, 4, 0, 2, 1, "pmi"),
        ),
        (srun(3, 4, 1, "2(x2)", 1), Rank(3, 4, 1, 2, 1, "slurm")),
        (srun(6, 7, 0, "2(x3),1", 3), Rank(6, 7, 0, 1, 3, "slurm")),
        (BATCH, Rank(0, 1, 0, 1, 0, "single")),
        (SALLOC, Rank(0, 1, 0, 1, 0, "single")),
        # one torchrun a node, started by srun: SLURM counts torchruns
        (srun(1, 2, 0, "1(x2)", 1) | TORCHRUN, Rank(3, 4, 1, 2, 1, "torchrun")),
        # `srun --mpi=pmi2` says twice who the rank is, and SLURM alone says where
        (
            srun(3, 4, 1, "2(x2)", 1, PMI_RANK="3", PMI_SIZE="4"),
            Rank(3, 4, 1, 2, 1, "pmi"),
        ),
        # empty is unset
        ({"RANK": "", "WORLD_SIZE": "", **OPENMPI}, Rank(3, 4, 1, 2, 1, "openmpi")),
    ],
)
def test_launchers(environ: dict[str, str], expected: Rank) -> None:
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, ["RANK", "'abc'"]),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, ["RANK", "'-1'"]),
        ({"RANK": "1_0", "WORLD_SIZE": "20"}, ["RANK", "'1_0'"]),
        ({"RANK": "١", "WORLD_SIZE": "2"}, ["RANK"]),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ["RANK=2", "WORLD_SIZE=2"]),
        ({"RANK": "5"}, ["RANK=5", "WORLD_SIZE"]),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, ["WORLD_SIZE"]),
        (srun(0, 2, 0, "2", 0, SLURM_STEP_NUM_TASKS="x\x1b[31m"), ["SLURM_STEP_NUM_TASKS", r"\x1b"]),
    ],
)
def test_a_malformed_source_is_ignored_and_named_once(
    environ: dict[str, str], named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ranks._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "otel_tracking"):
        assert detect(environ) == Rank()
        assert detect(environ | OPENMPI).source == "openmpi"
    assert len(caplog.messages) == 1
    assert all(part in caplog.messages[0] for part in named)
    assert len(caplog.messages[0]) < 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"LOCAL_RANK": "x"},
        {"LOCAL_RANK": "-1"},
        {"LOCAL_RANK": "2"},
        {"LOCAL_WORLD_SIZE": "5"},
        {"LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_a_malformed_place_on_the_node_leaves_the_rank(
    wrong: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    ranks._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "otel_tracking"):
        assert detect(TORCHRUN | wrong) == Rank(3, 4, 0, 1, 3, "torchrun")
    ((name, value),) = wrong.items()
    assert name in caplog.text
    assert value in caplog.text


def test_a_malformed_node_number_is_worked_out() -> None:
    assert detect(TORCHRUN | {"GROUP_RANK": "?"}) == Rank(3, 4, 1, 2, 1, "torchrun")


@pytest.mark.parametrize("tasks", ["two", "2(x1)", "2(x", ",", "2(x1),x"])
def test_slurm_tasks_per_node_that_do_not_reach_this_node(tasks: str) -> None:
    assert detect(srun(3, 4, 1, tasks, 1)) == Rank(3, 4, 0, 1, 3, "slurm")


def test_torch_distributed_comes_first_and_torch_is_never_imported() -> None:
    # One process shows all three: before the import, before and after the group is up.
    script = """
import os, sys
from otel_tracking.ranks import detect
os.environ.update(RANK="1", WORLD_SIZE="2", MASTER_ADDR="10.0.0.1")
print(detect().source)
assert "torch" not in sys.modules
import torch.distributed as dist
print(detect().source)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print(detect())
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", GROUP_RANK="0")
print(detect().source)
dist.destroy_process_group()
print(detect().source)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "env",
        "env",
        str(Rank(0, 1, 0, 1, 0, "torch.distributed")),
        "torch.distributed",
        "env",
    ]


KNOWN = ["wandb", "mlflow", "tensorboard"]
WORLD = [Rank(r, 4, r % 2, 2, r // 2) for r in range(4)]


def wanted(policy: object, tracker: str = "wandb") -> list[int]:
    policies = parse(policy, known=KNOWN)  # type: ignore[arg-type]  # wrong types are what some tests are about
    return [rank.rank for rank in WORLD if policies.wants(tracker, rank)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, [0]),
        ("main", [0]),
        ("local_main", [0, 2]),
        ("all", [0, 1, 2, 3]),
        ([1], [1]),
        ((0, 3), [0, 3]),
        ({3, 1}, [1, 3]),
        (range(2), [0, 1]),
        ([np.int64(2)], [2]),
        ("1,3", [1, 3]),
        ("2", [2]),
        ({"wandb": "all", "*": "main"}, [0, 1, 2, 3]),
        ({"mlflow": "all"}, [0]),
        ({"mlflow": "all", "*": [1]}, [1]),
        ({"wandb": [2, 3]}, [2, 3]),
        ("wandb=all", [0, 1, 2, 3]),
        ("mlflow=0,3,*=local_main", [0, 2]),
        ("wandb=0,3,*=local_main", [0, 3]),
        (" local_main , mlflow = all ", [0, 2]),
        ("1, 2, mlflow=all", [1, 2]),
    ],
)
def test_policies(policy: object, expected: list[int]) -> None:
    assert wanted(policy) == expected


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("local-main", "Did you mean 'local_main'"),
        ("Main", "Did you mean 'main'"),
        ("reduce", "Known: main, local_main, all"),
        ("", "unknown rank policy ''"),
        ("-1", "unknown rank policy '-1'"),
        ("0,main", "unknown rank policy '0,main'"),
        ("wandb=all,wandb=main", "'wandb' is given twice"),
        ("main,*=all", r"'\*' is given twice"),
        ("x" * 10_000, "unknown rank policy"),
        (1, r"such as \[1\]"),
        (b"all", "can't be b'all'"),
        ([], "empty list"),
        ([True], "not True"),
        ([np.True_], "not np.True_"),
        ([1.0], "not 1.0"),
        ([-1], "not -1"),
        (["1"], "not '1'"),
        ({"wandb": {"*": "all"}}, "can't be"),
        ({"wandb": "reduce"}, "unknown rank policy 'reduce'"),
    ],
)
def test_wrong_policies(policy: object, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as raised:
        wanted(policy)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("policy", [{"wadb": "all"}, "wadb=all", "=all"])
def test_unknown_trackers_are_named(policy: object) -> None:
    with pytest.raises(UnknownTracker, match="Known: mlflow, tensorboard, wandb"):
        wanted(policy)


def test_numbers_beyond_the_world_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    ranks._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "otel_tracking"):
        policies = parse([1, 4], known=KNOWN, world_size=4)
    assert caplog.messages == ["ranks names rank 4, and there are 4: it records nothing"]
    assert not policies.grouped("wandb", WORLD[0])


@pytest.mark.parametrize(
    ("policy", "rank", "grouped"),
    [
        ("main", WORLD[0], False),
        ("all", WORLD[0], True),
        ("all", Rank(), False),
        ("local_main", WORLD[0], True),
        ("local_main", Rank(1, 2, 1, 2), False),
        ([1], WORLD[0], False),
        ([0, 1], WORLD[0], True),
        ([0, 1], Rank(), False),
        ({"wandb": "all"}, WORLD[1], True),
        ({"mlflow": "all"}, WORLD[1], False),
    ],
)
def test_grouped(policy: object, rank: Rank, grouped: bool) -> None:
    assert parse(policy, known=KNOWN).grouped("wandb", rank) is grouped  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "several"),
    [
        ("main", False),
        ("all", True),
        ([3], False),
        ([0, 3], True),
        ({"wandb": [1], "*": "main"}, True),  # one rank each, and not the same one
        ({"wandb": [0], "*": "main"}, False),
        ({"tensorboard": "all", "*": "main"}, False),  # of a tracker that is not in use
    ],
)
def test_several(policy: object, several: bool) -> None:
    policies = parse(policy, known=KNOWN)  # type: ignore[arg-type]
    assert policies.several(["wandb", "mlflow"], WORLD[0]) is several
    assert not policies.several([], WORLD[0])
