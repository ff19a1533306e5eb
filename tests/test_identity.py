import contextlib
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch.distributed as dist
from hypothesis import example, given
from hypothesis import strategies as st

from otel_tracking.errors import RunIdentityUnknown
from otel_tracking.identity import (
    RunIdentity,
    check,
    directory_name,
    mint,
    pending_name,
    resolve,
    resolve_now,
)
from otel_tracking.records import Rank

ONE_NODE = Rank(1, 2, 1, 2, 0)
TWO_NODES = Rank(1, 2, 0, 1, 1)


# Names


NASTY = ["", ".", "..", "../x", "/etc/passwd", "a/../b", "a\0b", "\u202egnp.exe", "-rf", ".pending", "\ud800"]


@given(st.text(st.characters(), max_size=400))
@example("_x2f_")
@example("_x110000_")
@example("_x" + "f" * 30 + "_")
@example("ä" * 300)
def test_directory_names_are_single_safe_components(text: str) -> None:
    for name in (directory_name(text), check(text)):
        assert 0 < len(os.fsencode(name)) <= 200
        assert name[0] not in ".-"
        assert "/" not in name
        assert "\\" not in name
        assert not re.search(
            r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", name
        )


@pytest.mark.parametrize("text", NASTY)
def test_nasty_names_stay_in_their_directory(tmp_path: Path, text: str) -> None:
    inside = tmp_path / directory_name(text)
    inside.mkdir()
    assert inside.resolve().parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [directory_name(text)]


@given(st.lists(st.text("a./-\\_x2fe\u202e", max_size=12), unique=True, min_size=2, max_size=8))
def test_no_two_texts_share_a_directory(texts: list[str]) -> None:
    assert len({directory_name(t) for t in texts}) == len(texts)


@given(st.text(st.characters(), max_size=300))
@example("exp/1")
@example("_x5f_x2f_")
def test_checking_a_run_id_again_changes_nothing(text: str) -> None:
    assert check(check(text)) == check(text)
    # the directory of a hostile id is what users copy to come back to that run
    assert check(directory_name(text)) == directory_name(text)


@pytest.mark.parametrize("plain", ["exp-1", "2026.11_b", "lr=0.1 wd=0", "模型", "a_x", "20260101-000000-ab"])
def test_plain_names_stay_as_they_are(plain: str) -> None:
    assert directory_name(plain) == plain
    assert check(plain) == plain


def test_minted_ids_are_unique_and_sort_by_time() -> None:
    ids = [mint() for _ in range(1000)]
    assert len(set(ids)) == 1000
    stamps = [i.rpartition("-")[0] for i in ids]
    assert stamps == sorted(stamps)
    made = datetime.datetime.strptime(stamps[0], "%Y%m%d-%H%M%S").replace(tzinfo=datetime.UTC)
    assert abs((datetime.datetime.now(datetime.UTC) - made).total_seconds()) < 60
    assert check(ids[0]) == ids[0]


def test_pending_names_are_never_used_twice() -> None:
    names = {pending_name() for _ in range(100)}
    assert len(names) == 100
    for name in names:
        parent, _, own = name.partition("/")
        assert parent == ".pending"
        assert own == directory_name(own)
        assert f"-{os.getpid()}-" in own


# The rungs that need no wait


def srun(tasks: int, **more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": str(tasks), **more}


@pytest.mark.parametrize(
    ("rank", "explicit", "environ", "expected"),
    [
        (TWO_NODES, "mine", {"OTEL_TRACKING_RUN_ID": "env", **srun(2)}, RunIdentity("mine", "explicit")),
        (TWO_NODES, None, {"OTEL_TRACKING_RUN_ID": "env", **srun(2)}, RunIdentity("env", "explicit")),
        (TWO_NODES, "../up", {}, RunIdentity("_x2e_._x2f_up", "explicit")),
        (TWO_NODES, "", {"OTEL_TRACKING_RUN_ID": "", **srun(2)}, RunIdentity("slurm-77-3", "slurm")),
        (Rank(), None, srun(1), RunIdentity("slurm-77-3", "slurm")),
        # a requeued job comes back to its run
        (TWO_NODES, None, srun(2, SLURM_RESTART_COUNT="4"), RunIdentity("slurm-77-3", "slurm")),
        # one torchrun a task, two ranks each
        (Rank(3, 4, 1, 2, 1), None, srun(2, TORCHELASTIC_RUN_ID="none"), RunIdentity("slurm-77-3", "slurm")),
        # one srun a node: each would name its own step
        (Rank(3, 4, 1, 2, 1), None, srun(1, TORCHELASTIC_RUN_ID="none"), None),
        # mpirun's daemons run in a step on the other nodes only
        (Rank(3, 4, 1, 2, 1), None, srun(1, OMPI_COMM_WORLD_RANK="3"), None),
        # batch script, shell of salloc: no step of srun's
        (TWO_NODES, None, {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0"}, None),
        (TWO_NODES, None, srun(2, SLURM_STEP_ID=str(0xFFFFFFFA)), None),
        (TWO_NODES, None, {"TORCHELASTIC_RUN_ID": "job-9"}, RunIdentity("job-9", "torchelastic")),
        (TWO_NODES, None, {"TORCHELASTIC_RUN_ID": "a/b"}, RunIdentity("a_x2f_b", "torchelastic")),
        (TWO_NODES, None, {"TORCHELASTIC_RUN_ID": "none"}, None),
        # ranks started by hand, one node: their parent is a shell that starts the next run too
        (ONE_NODE, None, {"RANK": "1", "WORLD_SIZE": "2"}, None),
    ],
)
def test_ladder(
    rank: Rank, explicit: str | None, environ: dict[str, str], expected: RunIdentity | None
) -> None:
    assert resolve_now(rank, several=True, explicit=explicit, environ=environ) == expected


def test_one_recording_rank_names_its_run_itself() -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2"}
    made = [resolve_now(Rank(0, 2), several=False, environ=environ) for _ in range(2)]
    assert [m.source for m in made if m] == ["minted", "minted"]
    assert made[0] != made[1]


def test_a_terminal_of_slurm_starts_many_runs() -> None:
    made = resolve_now(Rank(), several=False, environ=srun(1, SLURM_PTY_PORT="4000"))
    assert made is not None
    assert made.source == "minted"


@pytest.mark.parametrize(
    "environ", [srun(2), {"TORCHELASTIC_RUN_ID": "job"}, {"OTEL_TRACKING_RUN_ID": "env"}, None]
)
def test_runs_after_another_in_one_process_are_told_apart(environ: dict[str, str] | None) -> None:
    environ = launcher_environ("a") if environ is None else environ
    names = [resolve_now(ONE_NODE, several=True, ordinal=n, environ=environ) for n in (1, 2, 1, 3)]
    first, second, again, third = (n.run_id for n in names if n)
    assert first == again
    assert (second, third) == (f"{first}-2", f"{first}-3")


def launcher_environ(launch: str, attempt: int = 0, local_rank: int = 0) -> dict[str, str]:
    log = f"/tmp/torchelastic_x/none_{launch}/attempt_{attempt}/{local_rank}/error.json"
    return {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": log}


def test_the_launcher_names_the_run_for_its_ranks_and_restarts() -> None:
    same = {resolve_now(ONE_NODE, several=True, environ=launcher_environ("a", n, n)) for n in range(3)}
    assert len(same) == 1
    (found,) = same
    assert found is not None
    assert found.source == "launcher"
    assert re.fullmatch("launch-[0-9a-f]{16}", found.run_id)
    # the next launch from one notebook
    assert resolve_now(ONE_NODE, several=True, environ=launcher_environ("b")) != found


@pytest.mark.parametrize("log", ["", "error.json", "///x", "/\udcff/b/c/d"])
def test_an_odd_error_file_is_no_obstacle(log: str) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": log}
    found = resolve_now(ONE_NODE, several=True, environ=environ)
    assert found is not None
    assert found.source == "launcher"


@pytest.mark.parametrize("mark", ["OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_a_launcher_is_found_above_wrapper_scripts(mark: str) -> None:
    # The launcher is a Python process that starts two ranks, one of them below two shells.
    rank = (
        "from otel_tracking import identity, records\n"
        "print(identity.resolve_now(records.Rank(1, 2, 1, 2), several=True), flush=True)"
    )
    launcher = f"""
import os, subprocess, sys
for n, wrap in enumerate([[], ["sh", "-c", 'sh -c "\\\\"\\\\$@\\\\"; true" s "$@"; true', "s"]]):
    env = {{**os.environ, {mark!r}: str(n)}}
    subprocess.run([*wrap, sys.executable, "-c", {rank!r}], env=env, check=True)
"""
    environ = {k: v for k, v in os.environ.items() if k != mark}
    launches = [
        subprocess.run(
            [sys.executable, "-c", launcher],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    for printed in launches:
        assert len(printed) == 2
        assert len(set(printed)) == 1
        assert "source='launcher'" in printed[0]
    assert launches[0] != launches[1]


# The store


class Store:
    """A TCP store like the one that torchrun's agent serves, and what its workers' environment says."""

    # torch closes a descriptor twice when it takes a server down, by then perhaps another client's.
    kept: ClassVar[list[object]] = []

    def __init__(self, port: int = 0) -> None:
        self.server = dist.TCPStore(  # type: ignore[attr-defined]  # public, though re-exported by a star
            "127.0.0.1", port, None, True, wait_for_workers=False
        )
        self.kept.append(self.server)
        self.environ = agent_environ(self.server.port)


def agent_environ(port: int) -> dict[str, str]:
    return {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


SECOND_NODE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(environ: dict[str, str], *, within: float = 10, ordinal: int = 1) -> RunIdentity:
    return resolve(
        TWO_NODES,
        several=True,
        deadline=time.monotonic() + within,
        stop=threading.Event(),
        ordinal=ordinal,
        environ=environ,
    )


def test_ranks_agree_through_a_store() -> None:
    first, second = Store(), Store()
    answers: list[RunIdentity] = []
    threads = [
        threading.Thread(target=lambda s=s: answers.append(ask(s.environ)))
        for s in [first] * 8 + [second] * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 10
    assert len({a.run_id for a in answers}) == 2
    assert {a.source for a in answers} == {"store"}
    assert ask(first.environ) in answers  # a worker that comes later, or again
    assert ask(first.environ, ordinal=2) not in answers
    assert ask(first.environ, ordinal=2) == ask(first.environ, ordinal=2)


def test_a_hostile_store_names_no_directory_elsewhere() -> None:
    store = Store()
    prefixed = dist.PrefixStore("otel_tracking", store.server)  # type: ignore[attr-defined]  # as above
    prefixed.set("run_id", "../../\x00\xff")
    assert "/" not in ask(store.environ).run_id


def test_a_store_may_come_up_late_and_be_named_late() -> None:
    port = free_port()
    environ = agent_environ(port)
    del environ["MASTER_PORT"]
    stores: list[Store] = []

    def come_up() -> None:
        time.sleep(0.3)
        environ["MASTER_PORT"] = str(port)
        time.sleep(0.3)
        stores.append(Store(port))

    thread = threading.Thread(target=come_up)
    thread.start()
    found = ask(environ)
    thread.join()
    assert found.source == "store"


def test_a_store_that_never_answers_is_given_up(silent_port: int) -> None:
    before = threading.active_count()
    start = time.monotonic()
    with pytest.raises(
        RunIdentityUnknown, match=r"does not answer as a store\. Set one OTEL_TRACKING_RUN_ID"
    ):
        ask(agent_environ(silent_port), within=0.5)
    assert time.monotonic() - start < 20
    assert threading.active_count() <= before + 1  # however often it was looked at


def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(RunIdentityUnknown, match=rf"127\.0\.0\.1:{port} can't be asked"):
        ask(agent_environ(port), within=0.5)


@pytest.mark.parametrize("port", ["", "0", "65536", "9" * 5000, "²", "-1", "29500x"])
def test_a_port_that_is_none(port: str) -> None:
    environ = agent_environ(1) | {"MASTER_PORT": port}
    with pytest.raises(RunIdentityUnknown, match="name no store") as raised:
        ask(environ, within=0)
    assert len(str(raised.value)) < 600


def test_stop_ends_the_wait() -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    with pytest.raises(RunIdentityUnknown, match=r'torchrun --rdzv-id=NAME.*ranks="main"'):
        resolve(TWO_NODES, several=True, deadline=start + 60, stop=stop, environ={})
    assert time.monotonic() - start < 20


def test_a_group_made_through_a_file_is_refused_at_once(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        start = time.monotonic()
        with pytest.raises(RunIdentityUnknown, match="MASTER_ADDR='' and MASTER_PORT='' name no store"):
            ask({}, within=60)
        assert time.monotonic() - start < 20
    finally:
        dist.destroy_process_group()


def test_a_waiting_rank_does_not_hold_up_or_break_exit(silent_port: int) -> None:
    script = """
import sys, threading, time, torch.distributed
from otel_tracking import identity, ranks
def wait():
    identity.resolve(ranks.detect(), several=True, deadline=time.monotonic() + 600, stop=threading.Event())
threading.Thread(target=wait, daemon=True).start()
for _ in range(200):
    if any(t.name == "otel-tracking-store" for t in threading.enumerate()):
        break
    time.sleep(0.05)
else:
    sys.exit("it does not wait for a store")
time.sleep(0.2)
print(time.monotonic(), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | agent_environ(silent_port) | SECOND_NODE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - float(done.stdout) < 20


def test_an_answer_at_exit_does_not_abort_the_process() -> None:
    store = Store()
    told = threading.Event()

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)

    def answer_late(front: socket.socket) -> None:
        front.accept()[0].close()  # the probe
        client, _ = front.accept()
        told.wait(30)
        with client, socket.create_connection(("127.0.0.1", store.server.port)) as back:
            threading.Thread(target=forward, args=(back, client), daemon=True).start()
            forward(client, back)

    # The interpreter is being taken down while `Slow` goes, with the module that holds it.
    script = """
import sys, threading, time, types, torch.distributed
from otel_tracking import identity, ranks
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)
sys.modules["slow"] = types.ModuleType("slow")
sys.modules["slow"].slow = Slow()
def wait():
    identity.resolve(ranks.detect(), several=True, deadline=time.monotonic() + 600, stop=threading.Event())
threading.Thread(target=wait, daemon=True).start()
for _ in range(200):
    if any(t.name == "otel-tracking-store" for t in threading.enumerate()):
        break
    time.sleep(0.05)
else:
    sys.exit("it does not wait for a store")
time.sleep(0.2)
print("bye", flush=True)
"""
    with socket.create_server(("127.0.0.1", 0)) as front:
        answering = threading.Thread(target=answer_late, args=(front,), daemon=True)
        answering.start()
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | agent_environ(front.getsockname()[1]) | SECOND_NODE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "bye\n"
        time.sleep(0.3)
        told.set()
        _, errors = process.communicate(timeout=30)
        answering.join(30)
    assert (process.returncode, errors) == (0, "")


# Real launches

WORKER = textwrap.dedent("""
    import json, os, sys, threading, time
    from pathlib import Path
    from otel_tracking import identity, ranks

    when, out, fail_first = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "fail"
    rank = ranks.detect()
    found = [identity.resolve_now(rank, several=True)]

    def find():
        found.append(
            identity.resolve(rank, several=True, deadline=time.monotonic() + 50, stop=threading.Event())
        )

    resolver = threading.Thread(target=find, daemon=True)
    resolver.start()
    if when != "no torch":
        import torch
        import torch.distributed as dist
        if when == "before the group":
            resolver.join(50)
            assert len(found) == 2
        if not fail_first:
            dist.init_process_group("gloo")
            ones = torch.ones(1)
            for n in range(50):  # while the resolver asks, where it has to wait for the group
                dist.all_reduce(ones)
                ones /= rank.world_size
            assert ones.item() == 1
    resolver.join(50)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    record = {"rank": rank.rank, "source": rank.source, "attempt": int(attempt), "run_id": found[1].run_id,
              "by": found[1].source, "at once": found[0] is not None}
    (out / f"{rank.rank}-{attempt}.json").write_text(json.dumps(record))
    if fail_first and attempt == "0" and rank.rank == 0:
        sys.exit(1)
    if when != "no torch" and not fail_first:
        dist.barrier()
        dist.destroy_process_group()
""")


def launch(
    directory: Path,
    name: str,
    when: str,
    commands: Sequence[Sequence[str]],
    *,
    fail: bool = False,
    **more: Any,
) -> list[dict[str, Any]]:
    """Run the commands side by side, each with the worker's script and arguments at its end."""
    script = directory / "worker.py"
    script.write_text(WORKER)
    out = directory / name
    out.mkdir()
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "SLURM", "OMPI", "PMI"))
    }
    # torch looks the name of every peer up; a slow name server is not what is tested here.
    environ |= {"OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
    processes = [
        subprocess.Popen(
            [*command, str(script), when, str(out), "fail" if fail else "-"],
            env=environ | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, extra in zip(commands, more.get("environs", [{}] * len(commands)), strict=True)
    ]
    printed = [process.communicate(timeout=90)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(commands), "\n".join(printed)
    return [json.loads(path.read_text()) for path in sorted(out.iterdir())]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def two_nodes(*options: str) -> list[list[str]]:
    port = str(free_port())
    static = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [[*TORCHRUN, *static, *options, f"--node-rank={node}"] for node in range(2)]


def test_two_launches_over_two_nodes_are_two_runs(tmp_path: Path) -> None:
    first = launch(tmp_path, "first", "before the group", two_nodes())
    second = launch(tmp_path, "second", "restart", two_nodes("--max-restarts=1"), fail=True)
    assert [r["rank"] for r in first] == [0, 1]
    assert len({r["run_id"] for r in first}) == 1
    assert {r["by"] for r in first} == {"store"}
    # The second time, node 0's worker fails and is restarted by its agent: it is the same run.
    assert [(r["rank"], r["attempt"]) for r in second] == [(0, 0), (0, 1), (1, 0)]
    assert len({r["run_id"] for r in second}) == 1
    assert first[0]["run_id"] != second[0]["run_id"]


def test_one_node_needs_neither_torch_nor_a_wait(tmp_path: Path) -> None:
    one_node = ["--nproc-per-node=2", "--rdzv-backend=static", "--master-addr=127.0.0.1"]
    command = [*TORCHRUN, *one_node, f"--master-port={free_port()}", "--max-restarts=1"]
    ranks = launch(tmp_path, "run", "no torch", [command], fail=True)
    assert {(r["rank"], r["attempt"]) for r in ranks} >= {(0, 0), (0, 1), (1, 1)}
    assert len({r["run_id"] for r in ranks}) == 1
    assert {(r["by"], r["at once"]) for r in ranks} == {("launcher", True)}


def test_ranks_started_by_hand_agree_when_their_group_is_up(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environs = [common | {"RANK": str(n)} for n in range(2)]
        runs.append(launch(tmp_path, name, "any time", [[sys.executable]] * 2, environs=environs))
    for ranks in runs:
        assert [r["rank"] for r in ranks] == [0, 1]
        assert len({r["run_id"] for r in ranks}) == 1
        assert {(r["by"], r["at once"]) for r in ranks} == {("store", False)}
    assert runs[0][0]["run_id"] != runs[1][0]["run_id"]
