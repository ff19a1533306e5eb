"""Which run this process records into.

Every rank of a run must come to the same id, two launches must not, and a rank that a launcher
restarts must come back to its own. The first rung that applies says so:

=== ==================================================== ============ =================================
    rung                                                 when known   shared by
=== ==================================================== ============ =================================
 1  the `run_id` argument, else OTEL_TRACKING_RUN_ID      at once      whoever is given it
 2  SLURM's job and step                                  at once      the tasks of an srun step, also
                                                                       after the job was requeued
 3  TORCHELASTIC_RUN_ID (`--rdzv-id`), unless `none`      at once      launches with that rendezvous id
 4  the launcher's process and its start time             at once      its ranks, all on this node
 5  a key in the process group's TCP store                when torch   whoever reaches MASTER_ADDR and
                                                          is up        MASTER_PORT
 6  a new id                                              at once      nobody: one rank records
=== ==================================================== ============ =================================

Rung 4 comes before 5 because it needs neither torch nor a wait. It asks for a launcher (torchrun,
DeepSpeed, an MPI) that is one process for each launch: the parent of ranks started by a shell
script is the shell, which starts the next run too.

Rung 5 is no collective: one would have to be the training thread's, in the same order on all
ranks, ranks that record nothing included. Each rank connects a client of its own, from a thread of
its own, and whoever comes first sets the key (`compare_set`); no rank waits for another. torchrun's
agent serves that store from the start, so it is there before any process group, and still there
when workers are restarted.

Restart counts are no part of an id. Two runs that one process begins one after the other are told
apart by `ordinal`.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from otel_tracking.errors import RunIdentityUnknown
from otel_tracking.names import NameRule
from otel_tracking.ranks import slurm_step
from otel_tracking.records import Rank

_POLL = 0.1
"""Seconds between looks for a store."""
_LAST_LOOK = 2.0
"""Seconds that the last look, after the deadline, may take."""
_EXIT_TIMEOUT = 1.0
"""Seconds that the exit of the interpreter waits for a look."""
_STORE_TIMEOUT = 60.0
"""Seconds that torch's client is given; it looks its peer's name up, which is slow where DNS is."""

_LAUNCHER_MARKS = (
    "TORCHELASTIC_RUN_ID",
    "CROSS_RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMI_RANK",
)
"""Variables that a launcher sets for its ranks and does not have itself: torchrun, DeepSpeed, MPIs."""

_DIRECTORY = NameRule(
    # Separators, controls, and what reorders or hides text on a terminal.
    forbidden=r"/\\\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff",
    # A leading dot hides (and `.`, `..` lead elsewhere), a leading dash is an option to commands.
    forbidden_parts=r"^[.-]",
    # NAME_MAX is 255; the rest is for suffixes.
    max_bytes=200,
)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """The run a process records into."""

    run_id: str
    """Also the name of the run's directory: one path component, at most 200 bytes."""
    source: str
    """The rung that said so: explicit, slurm, torchelastic, launcher, store, minted."""


def directory_name(text: str) -> str:
    """The text as one safe path component, never two texts as one (short of cut ones that collide)."""
    return _DIRECTORY.escape(text)


def check(run_id: str) -> str:
    """A run id as `RunIdentity` carries it: unchanged if it is a safe path component, else escaped.

    Unlike `directory_name` this can be applied again: an id copied from a directory's name is
    that run's.
    """
    return run_id if _DIRECTORY.is_legal(run_id) else directory_name(run_id)


def mint() -> str:
    """A new id: sorts by time (UTC, to the second), then random."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def pending_name() -> str:
    """Where a rank records until its run is known, relative to the project's directory.

    A name of its own on every call, also across hosts that share a file system.
    """
    return f".pending/{directory_name(socket.gethostname())}-{os.getpid()}-{time.time_ns()}"


def resolve_now(
    rank: Rank,
    *,
    several: bool,
    explicit: str | None = None,
    ordinal: int = 1,
    environ: Mapping[str, str] | None = None,
) -> RunIdentity | None:
    """The run, if it can be told without waiting; None leaves it to `resolve`.

    Args:
        rank: This process's rank.
        several: Whether more than one rank records (`RankPolicies.several`).
        explicit: The id that the user gave, in code.
        ordinal: 1 for the first run that this process begins in the project, 2 for the next.
        environ: Where to look instead of `os.environ`.
    """
    environ = os.environ if environ is None else environ
    if explicit:
        return RunIdentity(check(explicit), "explicit")
    found = (
        _from_environment(environ)
        or _from_slurm(rank, environ)
        or _from_torchelastic(environ)
        or _from_launcher(rank, environ)
    )
    if found is not None:
        return RunIdentity(_nth(found.run_id, ordinal), found.source)
    return None if several else RunIdentity(mint(), "minted")


def resolve(
    rank: Rank,
    *,
    several: bool,
    deadline: float,
    stop: threading.Event,
    explicit: str | None = None,
    ordinal: int = 1,
    environ: Mapping[str, str] | None = None,
) -> RunIdentity:
    """The run, waiting for a store if need be. Call it on a daemon thread of its own.

    Args:
        rank: As for `resolve_now`, like `several`, `explicit`, `ordinal` and `environ`. Variables
            are read again on every look: a script may set MASTER_ADDR itself.
        deadline: The `time.monotonic()` at which to give up.
        stop: Give up after one more look.

    Returns:
        In any case within two seconds or so of the deadline or of `stop`.

    Raises:
        RunIdentityUnknown: No rung applied in time; the text says what the user can do.
    """
    environ = os.environ if environ is None else environ
    known = resolve_now(rank, several=several, explicit=explicit, ordinal=ordinal, environ=environ)
    if known is not None:
        return known
    key, proposal = _nth("run_id", ordinal), mint()
    question: _Question | None = None
    while True:
        last = stop.is_set() or time.monotonic() >= deadline
        try:
            # One that has not come back is not asked again: it may be stuck for good.
            if question is None or question.done.is_set():
                question = _Question(_store_endpoint(environ), key, proposal)
            question.done.wait(_LAST_LOOK if last else _POLL)
            return RunIdentity(question.answer(), "store")
        except _NotYet as problem:
            if last:
                raise _unknown(str(problem)) from None
        stop.wait(_POLL)


def _nth(run_id: str, ordinal: int) -> str:
    return run_id if ordinal == 1 else f"{run_id}-{ordinal}"


def _from_environment(environ: Mapping[str, str]) -> RunIdentity | None:
    run_id = environ.get("OTEL_TRACKING_RUN_ID")
    return RunIdentity(check(run_id), "explicit") if run_id else None


def _from_slurm(rank: Rank, environ: Mapping[str, str]) -> RunIdentity | None:
    step = slurm_step(environ)
    if step is None or (step.terminal and step.tasks == 1):  # a shell may start many runs
        return None
    # All ranks must be in this step, as tasks or below one launcher a task. They are not where
    # a script starts one srun a node, or mpirun starts daemons on the other nodes only.
    per_task = rank.local_world_size if "TORCHELASTIC_RUN_ID" in environ else 1
    if rank.world_size not in (step.tasks, step.tasks * per_task):
        return None
    return RunIdentity(f"slurm-{step.job}-{step.step}", "slurm")


def _from_torchelastic(environ: Mapping[str, str]) -> RunIdentity | None:
    run_id = environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if run_id in ("", "none") else RunIdentity(check(run_id), "torchelastic")


# Rung 4: the launcher's process


def _from_launcher(rank: Rank, environ: Mapping[str, str]) -> RunIdentity | None:
    mark = next((m for m in _LAUNCHER_MARKS if m in environ), None)
    if mark is None or rank.world_size != rank.local_world_size:
        return None
    try:
        launcher = _launcher_process(mark)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux, or a /proc that shows less: the store is asked instead
        return None
    # A notebook's launcher is the notebook, for every launch from it; torchrun's log directory
    # (`<run>/attempt_<n>/<local rank>/error.json`) is new for each.
    above = PurePosixPath(environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    launch = str(above[2]) if len(above) > 2 else ""
    parts = (boot, namespace, *launcher, launch)
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]
    return RunIdentity(f"launch-{digest}", "launcher")


def _launcher_process(mark: str) -> tuple[str, str]:
    """(pid, start time) of the nearest ancestor that was not itself given the variable `mark`.

    It need not be the parent: `torchrun --no-python wrapper.sh` has a shell between.
    """
    pid = str(os.getppid())
    while True:
        parent, started = _stat(pid)
        if parent == "0" or not _was_given(pid, mark):
            return pid, started
        pid = parent


def _was_given(pid: str, variable: str) -> bool:
    try:
        environ = Path("/proc", pid, "environ").read_bytes()
    except PermissionError:  # another user's, such as SLURM's or an MPI daemon: no rank of ours
        return False
    return any(entry.startswith(variable.encode() + b"=") for entry in environ.split(b"\0"))


def _stat(pid: str) -> tuple[str, str]:
    """(parent's pid, start in clock ticks since boot), fields 4 and 22 of /proc/<pid>/stat."""
    # The second field is the program's name, in parentheses, and may hold anything, these too.
    fields = Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()
    return fields[1].decode(), fields[19].decode()


# Rung 5: the store


class _NotYet(Exception):
    """No store has answered so far; the text says what is missing."""


def _unknown(problem: str) -> RunIdentityUnknown:
    return RunIdentityUnknown(
        f"several ranks record and can't agree on one run: {problem}. Set one OTEL_TRACKING_RUN_ID for "
        "all ranks, or launch with `otel-tracking run -- torchrun ...`, or with `torchrun --rdzv-id=NAME`, "
        'or record on one rank only (ranks="main").'
    )


def _store_endpoint(environ: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of the store that serves, or should."""
    dist: Any = sys.modules.get("torch.distributed")
    # Another thread may be in the middle of importing it.
    if not all(hasattr(dist, name) for name in ("TCPStore", "PrefixStore", "is_initialized")):
        raise _NotYet("torch.distributed is not imported")
    initialised = dist.is_initialized()
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not initialised:
        raise _NotYet("torch.distributed is not initialised")
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536:
        return host, int(port)
    problem = f"MASTER_ADDR={host[:80]!r} and MASTER_PORT={port[:80]!r} name no store"
    # A group that is up without them was made through a file or a store of the script's own.
    raise _unknown(problem) if initialised else _NotYet(problem)


class _Question:
    """Asks a store which run it is, proposing one, on a thread that can be left behind.

    Something that listens and is no store makes torch's client wait without end, whatever its
    timeout, and so may the look-up of the address.
    """

    def __init__(self, endpoint: tuple[str, int], key: str, proposal: str) -> None:
        self._endpoint = endpoint
        self._key = key
        self._proposal = proposal
        self._answer: str | None = None
        self._problem = "does not answer as a store"
        self.done = threading.Event()
        _open_questions.add(self)
        try:
            if _exiting.is_set():  # looked at once the question is in the open, where `_settle` sees it
                raise RuntimeError("the interpreter is exiting")
            threading.Thread(target=self._run, name="otel-tracking-store", daemon=True).start()
        except RuntimeError as error:  # Python starts no thread at exit either
            self._close()
            raise _NotYet(str(error)) from None

    def answer(self) -> str:
        if self._answer is None:
            raise _NotYet(f"{self._endpoint[0][:80]}:{self._endpoint[1]} {self._problem}")
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except Exception as error:  # noqa: BLE001  of c10d's, which documents none; told in the end
            self._problem = f"can't be asked ({str(error)[:200]})"
        finally:
            self._close()

    def _close(self) -> None:
        _open_questions.discard(self)
        self.done.set()

    def _ask(self) -> str:
        # torch's client prints stack traces while nobody listens, so that is tried first.
        socket.create_connection(self._endpoint, _STORE_TIMEOUT).close()
        dist: Any = sys.modules["torch.distributed"]
        client = dist.TCPStore(
            *self._endpoint,
            is_master=False,
            timeout=datetime.timedelta(seconds=_STORE_TIMEOUT),
            wait_for_workers=False,
        )
        # An empty expectation sets the key only if there is none; the answer is what holds.
        held = dist.PrefixStore("otel_tracking", client).compare_set(self._key, "", self._proposal)
        return check(held.decode(errors="replace"))


_open_questions: set[_Question] = set()
_exiting = threading.Event()


@atexit.register
def _settle() -> None:
    # A thread that comes back from torch's C++ while the interpreter is taken down aborts the
    # process ("terminate called without an active exception").
    _exiting.set()
    for question in list(_open_questions):
        question.done.wait(_EXIT_TIMEOUT)


if sys.platform != "win32":
    # The threads that would close them are not in the child.
    os.register_at_fork(after_in_child=_open_questions.clear)
