"""Who this process is among those that train together, and which ranks record for which tracker.

`detect` takes rank and world size from the first of these that states both, validly:

================== ========================================== ================================
source             rank, world size                           when
================== ========================================== ================================
torch.distributed  `get_rank()`, `get_world_size()`           imported and initialised
torchrun           RANK, WORLD_SIZE                           TORCHELASTIC_RUN_ID is set too
                                                              (also `accelerate launch`)
deepspeed          RANK, WORLD_SIZE                           CROSS_RANK is set too
env                RANK, WORLD_SIZE                           set by hand, or by an operator
openmpi            OMPI_COMM_WORLD_RANK, .._SIZE
mvapich2           MV2_COMM_WORLD_RANK, .._SIZE
pmi                PMI_RANK, PMI_SIZE                         MPICH, Intel MPI
slurm              SLURM_PROCID, SLURM_STEP_NUM_TASKS         in a step of srun only
single             0, 1                                       nothing else applies
================== ========================================== ================================

Launchers come before SLURM because they run inside its steps: there SLURM_PROCID counts launchers.
Where a rank stands on its node comes from the first source that agrees on rank and world size and
says so. If none does, a MASTER_ADDR on the loopback means one node, and otherwise each rank
counts as a node of its own.

OMPI_COMM_WORLD_NODE_RANK is not read: in spite of its name it counts processes on a node.
"""

from __future__ import annotations

import difflib
import functools
import logging
import operator
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from otel_tracking.errors import ConfigurationError, UnknownTracker
from otel_tracking.records import Rank

_log = logging.getLogger(__name__)

_NUMBER = re.compile("[0-9]{1,9}")
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Found:
    """What one source says; None where it says nothing."""

    source: str
    rank: int
    world_size: int
    local_rank: int | None = None
    local_world_size: int | None = None
    node_rank: int | None = None


@dataclass(frozen=True, slots=True)
class _Launcher:
    """The variables by which a launcher tells its processes who they are."""

    source: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str
    node_rank: str | None = None
    marker: str | None = None
    """Must be set as well."""


_LAUNCHERS = (
    _Launcher(
        "torchrun",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        marker="TORCHELASTIC_RUN_ID",
    ),
    _Launcher(
        "deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", marker="CROSS_RANK"
    ),
    _Launcher("env", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher(
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        "mvapich2",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher("pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_SLURM = _Launcher(
    "slurm",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_NODEID",
)


class _Malformed(Exception):
    """A variable can't be what its name says."""


def detect(environ: Mapping[str, str] | None = None) -> Rank:
    """The rank of this process, by the table above. Never imports torch, never raises.

    A malformed variable is warned about once, and what it would have said is ignored.

    Args:
        environ: Where to look instead of `os.environ`.
    """
    environ = os.environ if environ is None else environ
    launchers = [one for one in _LAUNCHERS if one.marker is None or one.marker in environ]
    if slurm_step(environ) is not None:
        launchers.append(_SLURM)
    found = [*_from_torch(), *(f for one in launchers if (f := _from_launcher(one, environ)) is not None)]
    if not found:
        return Rank()
    first = found[0]
    alike = (f for f in found if (f.rank, f.world_size) == (first.rank, first.world_size))
    placed = next((f for f in alike if f.local_rank is not None), first)
    return _placed(replace(placed, source=first.source), environ)


def _from_torch() -> list[_Found]:
    dist: Any = sys.modules.get("torch.distributed")
    # While another thread is still importing it, the module is there and its functions are not;
    # where torch was built without distributed, they never are.
    initialised = getattr(dist, "is_initialized", None)
    if initialised is None or not initialised():
        return []
    try:
        return [_Found("torch.distributed", dist.get_rank(), dist.get_world_size())]
    except (RuntimeError, ValueError):  # another thread has just destroyed the group
        return []


def _from_launcher(launcher: _Launcher, environ: Mapping[str, str]) -> _Found | None:
    try:
        rank = _number(environ, launcher.rank)
        if rank is None:
            return None
        world_size = _number(environ, launcher.world_size)
        if world_size is None:
            raise _Malformed(f"{launcher.rank}={rank} is set without {launcher.world_size}")
        if rank >= world_size:
            raise _Malformed(f"{launcher.rank}={rank} is not below {launcher.world_size}={world_size}")
    except _Malformed as wrong:
        _warn_once(f"{wrong}: no rank is taken from it")
        return None
    found = _Found(launcher.source, rank, world_size)
    try:
        local_rank = _number(environ, launcher.local_rank)
        node_rank = _number(environ, launcher.node_rank) if launcher.node_rank else None
        local_world_size = _on_node(environ, launcher.local_world_size, node_rank)
        if local_world_size is not None and not 0 < local_world_size <= world_size:
            raise _Malformed(f"{launcher.local_world_size}={local_world_size} is not from 1 to {world_size}")
        if local_rank is not None and local_rank >= (local_world_size or world_size):
            raise _Malformed(f"{launcher.local_rank}={local_rank} is beyond the ranks of a node")
    except _Malformed as wrong:
        _warn_once(f"{wrong}: no place on a node is taken from it")
        return found
    return replace(found, local_rank=local_rank, local_world_size=local_world_size, node_rank=node_rank)


def _placed(found: _Found, environ: Mapping[str, str]) -> Rank:
    """The rank, with what its source does not say about its node worked out."""
    one_node = bool(_LOOPBACK.fullmatch(environ.get("MASTER_ADDR", "")))
    local_rank, local_world_size = found.local_rank, found.local_world_size
    if local_rank is None:
        local_rank = found.rank if one_node else 0
        local_world_size = None
    if local_world_size is None:
        local_world_size = found.world_size if one_node else local_rank + 1
    node_rank = found.node_rank
    if node_rank is None:
        nodes = -(-found.world_size // local_world_size)
        by_node = found.rank % local_world_size != local_rank and found.rank // nodes == local_rank
        node_rank = found.rank % nodes if by_node else found.rank // local_world_size
    return Rank(found.rank, found.world_size, local_rank, local_world_size, node_rank, found.source)


@dataclass(frozen=True, slots=True)
class SlurmStep:
    """A step that srun started, as told to one of its tasks."""

    job: str
    step: int
    tasks: int
    """0 if the variable that says so is missing or malformed."""
    terminal: bool
    """Whether srun gave it a terminal (`--pty`), or it was started by hand from a step that has one."""


def slurm_step(environ: Mapping[str, str]) -> SlurmStep | None:
    """The srun step this process runs in, or None.

    A batch script and the shell of an allocation also have SLURM_PROCID=0, though SLURM started
    no ranks there: they have no step number, or a reserved one.
    """
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or ""
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or ""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if not (_NUMBER.fullmatch(job) and _NUMBER.fullmatch(step)):  # a reserved one has ten digits
        return None
    terminal = "SLURM_PTY_PORT" in environ or "SLURM_PTY_WIN_COL" in environ
    return SlurmStep(job, int(step), int(tasks) if _NUMBER.fullmatch(tasks) else 0, terminal)


def _on_node(environ: Mapping[str, str], name: str, node_rank: int | None) -> int | None:
    """How many ranks a node has: a number, or SLURM's `2(x3),1` (two on three nodes, one on the next)."""
    text = environ.get(name, "").strip()
    if not text or _NUMBER.fullmatch(text):
        return _number(environ, name)
    nodes = 0
    for part in text.split(","):
        match = _TASKS.fullmatch(part)
        if match is None or node_rank is None:
            raise _Malformed(f"{name}={text[:80]!r} does not say how many ranks this node has")
        nodes += int(match[2] or 1)
        if node_rank < nodes:
            return int(match[1])
    raise _Malformed(f"{name}={text[:80]!r} has no node {node_rank}")


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """A variable's value; None where it is not set or empty."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise _Malformed(f"{name}={text[:80]!r} is no whole number from 0 on")
    return int(text)


@functools.lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


# Policies

Policy: TypeAlias = "str | Collection[int] | Mapping[str, str | Collection[int]]"
"""What users write for `ranks=`."""

_WORDS = ("main", "local_main", "all")
_EVERY_OTHER = "*"


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """Which ranks record: a word, or numbers."""

    word: str | None = "main"
    """`main`, `local_main`, `all`; None when `ranks` says it."""
    ranks: frozenset[int] = frozenset()

    def wants(self, rank: Rank) -> bool:
        """Whether that rank records."""
        match self.word:
            case "main":
                return rank.is_main
            case "local_main":
                return rank.is_local_main
            case "all":
                return True
        return rank.rank in self.ranks

    def recording(self, rank: Rank) -> AbstractSet[int]:
        """The ranks that record in this rank's world; of `local_main` as many as there are nodes."""
        match self.word:
            case "main":
                return {0}
            case "local_main":
                return set(range(0, rank.world_size, rank.local_world_size))
            case "all":
                return set(range(rank.world_size))
        return {r for r in self.ranks if r < rank.world_size}


@dataclass(frozen=True, slots=True)
class RankPolicies:
    """Which ranks record, by tracker."""

    default: RankPolicy = RankPolicy()
    by_tracker: Mapping[str, RankPolicy] = field(default_factory=dict)

    def of(self, tracker: str) -> RankPolicy:
        """The policy of one tracker."""
        return self.by_tracker.get(tracker, self.default)

    def wants(self, tracker: str, rank: Rank) -> bool:
        """Whether that rank records for that tracker."""
        return self.of(tracker).wants(rank)

    def grouped(self, tracker: str, rank: Rank) -> bool:
        """Whether several ranks of this rank's world each get a run of their own in that tracker."""
        return len(self.of(tracker).recording(rank)) > 1

    def several(self, trackers: Iterable[str], rank: Rank) -> bool:
        """Whether more than one rank of this rank's world records, so that they must agree on a run."""
        return len(set[int]().union(*(self.of(t).recording(rank) for t in trackers))) > 1


def parse(policy: Policy | None, *, known: Collection[str], world_size: int | None = None) -> RankPolicies:
    """Check a policy as users write it.

    Args:
        policy: `"main"` (also None), `"local_main"`, `"all"`, rank numbers (`[0, 3]`), or one of
            these by tracker: `{"wandb": "all", "*": "main"}`, where `*` is every other tracker
            and is `main` unless given.

            As text, for OTEL_TRACKING_RANKS: a word; numbers (`0,3`); by tracker
            `wandb=all,mlflow=0,3,*=local_main`. What stands before the first `name=` is
            for every other tracker: `main,wandb=all`.
        known: Names that trackers may have.
        world_size: Warn about numbers that no rank of such a world has.

    Raises:
        ConfigurationError: The policy is not one of these.
        UnknownTracker: It names a tracker that is not known.
    """
    if policy is None:
        return RankPolicies()
    if isinstance(policy, str):
        policy = _from_text(policy)
    if not isinstance(policy, Mapping):
        policy = {_EVERY_OTHER: policy}
    for name in policy:
        if name != _EVERY_OTHER and name not in known:
            raise UnknownTracker(str(name), known)
    by_tracker = {name: _policy(value, world_size) for name, value in policy.items()}
    return RankPolicies(by_tracker.pop(_EVERY_OTHER, RankPolicy()), by_tracker)


def _from_text(text: str) -> dict[str, str | list[int]]:
    words: dict[str, list[str]] = {}
    name = _EVERY_OTHER
    for part in text.split(","):
        left, equals, value = part.rpartition("=")
        if equals:
            name = left.strip()
            if name in words:
                raise ConfigurationError(f"ranks {text[:200]!r}: {name!r} is given twice")
        words.setdefault(name, []).append(value.strip())
    return {name: _value(parts) for name, parts in words.items()}


def _value(parts: list[str]) -> str | list[int]:
    if all(_NUMBER.fullmatch(part) for part in parts):
        return [int(part) for part in parts]
    return ",".join(parts)


def _policy(value: object, world_size: int | None) -> RankPolicy:
    if isinstance(value, str):
        if value not in _WORDS:
            close = difflib.get_close_matches(value, _WORDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(
                f"unknown rank policy {value[:200]!r}.{hint} Known: {', '.join(_WORDS)}, "
                "or rank numbers such as [0, 3]."
            )
        return RankPolicy(value)
    if not isinstance(value, Collection) or isinstance(value, bytes | bytearray | Mapping):
        raise ConfigurationError(
            f"ranks can't be {value!r:.200}: give {', '.join(_WORDS)}, or a list of rank numbers such as [1]."
        )
    ranks = frozenset(_rank_number(number) for number in value)
    if not ranks:
        raise ConfigurationError("ranks can't be an empty list: nothing would be recorded on any rank.")
    if world_size is not None:
        for number in sorted(ranks):
            if number >= world_size:
                _warn_once(f"ranks names rank {number}, and there are {world_size}: it records nothing")
    return RankPolicy(None, ranks)


def _rank_number(number: object) -> int:
    # bool is an int to Python, and NumPy's integers are not: the index protocol tells them apart.
    if isinstance(number, bool) or not hasattr(number, "__index__") or operator.index(number) < 0:
        raise ConfigurationError(f"a rank is a whole number from 0 on, not {number!r:.200}.")
    return operator.index(number)
