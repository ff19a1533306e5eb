"""What `otel-tracking doctor` finds of servers, and of folders and databases named in their place."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import clearml.backend_api.session
import comet_ml.config.config_constants
import dvc_studio_client
import pytest
import swanlab
import wandb.sdk.lib.urls

from otel_tracking import discovery
from otel_tracking.capabilities import Declaration, Server
from otel_tracking.doctor import servers
from otel_tracking.doctor.finding import Finding, State
from otel_tracking.doctor.logins import look_at_login
from otel_tracking.reach import Address

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is tried, each of which answers."""
    found: list[str] = []
    monkeypatch.setattr(servers, "knock", lambda address, seconds: found.append(str(address)))
    return found


def look(server: Server, offline: str = "") -> Finding:
    it = servers.named(server, os.environ)
    assert it is not None
    return servers.look_at_server("a tracker", it, offline)()


def declared(name: str) -> Declaration:
    found = discovery.declaration(name)
    assert found is not None
    return found


SERVER = Server(variables=("SERVER",))
BARE = Server(variables=("SERVER",), bare=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port} of SERVER answers"),
        ("http://user:s3cr3t@127.0.0.1:{port}/x?token=s3cr3t", "127.0.0.1:{port} of SERVER answers"),
        ("127.0.0.1:{port}", "127.0.0.1:{port} of SERVER answers"),
    ],
)
def test_a_server_that_answers(monkeypatch: pytest.MonkeyPatch, port: int, value: str, text: str) -> None:
    monkeypatch.setenv("SERVER", value.format(port=port))
    assert look(BARE) == Finding("a tracker", State.OK, text.format(port=port))


def test_a_server_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", f"http://user:{SECRET}@127.0.0.1:1")
    found = look(SERVER)
    assert found.state is State.PROBLEM
    assert found.text == "127.0.0.1:1 of SERVER can't be reached (Connection refused)"
    assert found.fix.startswith("start the server, or correct SERVER")


@pytest.mark.parametrize(
    ("value", "text", "fix"),
    [
        ("http://[::1", "SERVER is no address", "correct SERVER, as in https://host:port"),
        ("http://host:99999", "SERVER is no address", "correct SERVER, as in https://host:port"),
        ("http:///x", "SERVER names no host", "set SERVER=https://host"),
        (
            "htps://me:s3cr3t@host",
            "SERVER begins with htps://, not with https:// or http://",
            "set SERVER=https://host",
        ),
        ("host:5000", "SERVER does not say https:// or http://", "set SERVER=http://host:5000"),
        ("me:s3cr3t@host", "SERVER does not say https:// or http://", "set SERVER=https://host"),
        ("https://me:s3c/r3t@host", "SERVER is no address", "correct SERVER, as in https://host:port"),
        ("https://me:12/s3cr3t@host", "SERVER is no address", "correct SERVER, as in https://host:port"),
    ],
)
def test_what_is_no_servers_address(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], value: str, text: str, fix: str
) -> None:
    monkeypatch.setenv("SERVER", value)
    assert look(SERVER) == Finding("a tracker", State.PROBLEM, text, fix)
    assert not tried


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("http://host", "host:80"),
        ("https://host", "host:443"),
        ("grpc://host:4317", "host:4317"),
        ("aim://host:53800", "host:53800"),
        ("host:43800", "host:43800"),
    ],
)
def test_schemes_and_their_ports(
    monkeypatch: pytest.MonkeyPatch, tried: list[str], value: str, address: str
) -> None:
    monkeypatch.setenv("SERVER", value)
    look(Server(variables=("SERVER",), schemes=("aim", "grpc", "http", "https"), bare=True))
    assert tried == [address]


@pytest.mark.parametrize(
    ("uri", "state", "text"),
    [
        ("databricks", State.NOTE, "MLFLOW_TRACKING_URI names Databricks, which is not tried"),
        ("databricks://profile", State.NOTE, "MLFLOW_TRACKING_URI names Databricks, which is not tried"),
        ("databricks-uc", State.NOTE, "MLFLOW_TRACKING_URI names Databricks, which is not tried"),
        ("mlruns", State.OK, "mlruns can be made"),
        ("./mlruns", State.OK, "mlruns can be made"),
        ("file://{tmp}/new", State.OK, "{tmp}/new can be made"),
        ("file:{tmp}", State.OK, "{tmp} can be written"),
        ("{tmp}/a%20b", State.OK, "{tmp}/a%20b can be made"),
        ("sqlite:///x.db", State.OK, "x.db can be made"),
        ("sqlite:///{tmp}/x%20y.db", State.OK, "{tmp}/x y.db can be made"),
        ("sqlite:///there.db", State.OK, "there.db can be written"),
        (
            "postgresql://me:s3cr3t@host/db",
            State.NOTE,
            "MLFLOW_TRACKING_URI names a database (PostgreSQL), which is not tried",
        ),
        (
            "mysql+pymysql://me:s3cr3t@host/db",
            State.NOTE,
            "MLFLOW_TRACKING_URI names a database (MySQL), which is not tried",
        ),
        (
            "plugin://me:s3cr3t@host",
            State.NOTE,
            "MLFLOW_TRACKING_URI names a store of the kind plugin, which is not tried",
        ),
        ("/proc/mlruns", State.PROBLEM, "/proc/mlruns can't be written"),
        ("sqlite:////proc/x.db", State.PROBLEM, "/proc can't be written"),
        ("sqlite:///there.db/x.db", State.PROBLEM, "{tmp}/there.db is no folder"),
        ("sqlite:///{tmp}", State.PROBLEM, "{tmp} is a folder, not a file"),
        ("there.db", State.PROBLEM, "{tmp}/there.db is no folder"),
        (
            "sqlite://",
            State.PROBLEM,
            "MLFLOW_TRACKING_URI names a database in memory: nothing of it stays",
        ),
        (
            "localhost:5000",
            State.PROBLEM,
            "MLFLOW_TRACKING_URI does not say https:// or http://",
        ),
        ("me:s3cr3t@host/x", State.PROBLEM, "MLFLOW_TRACKING_URI does not say https:// or http://"),
        ("me:s3cr/3t@host", State.PROBLEM, "MLFLOW_TRACKING_URI is no address"),
    ],
)
def test_what_mlflow_takes_in_place_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[str], uri: str, state: State, text: str
) -> None:
    (tmp_path / "there.db").touch()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp=tmp_path))
    found = look(declared("mlflow").servers[0])
    told = found.text.partition(" can't be written: ")  # the reason is the system's
    assert (found.state, told[0] + told[1][:-2]) == (state, text.format(tmp=tmp_path))
    assert bool(found.fix) == (state is State.PROBLEM)
    assert SECRET not in found.fix
    assert not tried
    assert [each.name for each in tmp_path.iterdir()] == ["there.db"]


def test_a_folder_that_mlflow_may_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    found = look(declared("mlflow").servers[0])
    assert found.state is State.NOTE
    assert found.fix == (
        f"set MLFLOW_ALLOW_FILE_STORE=true, or MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlruns/mlflow.db"
    )


def test_the_defaults_are_those_of_the_packages() -> None:
    defaults = {name: server.default for name in discovery.known() for server in declared(name).servers}
    assert defaults == {
        "clearml": clearml.backend_api.session.Session.default_host,
        "comet_ml": comet_ml.config.config_constants.DEFAULT_COMET_BASE_URL,
        "dvclive": dvc_studio_client.DEFAULT_STUDIO_URL,
        "mlflow": "",
        "swanlab": swanlab.Settings.model_fields["api_host"].default,
        "wandb": wandb.sdk.lib.urls.DEFAULT_BASE_URL,
    }


LOGINS = {
    "clearml": {"CLEARML_API_ACCESS_KEY": SECRET, "CLEARML_API_SECRET_KEY": SECRET},
    "comet_ml": {"COMET_API_KEY": SECRET},
    "dvclive": {"DVC_STUDIO_TOKEN": SECRET},
    "swanlab": {"SWANLAB_API_KEY": SECRET},
    "wandb": {"WANDB_API_KEY": SECRET},
}


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("clearml", "api.clear.ml"),
        ("comet_ml", "www.comet.com"),
        ("dvclive", "studio.datachain.ai"),
        ("swanlab", "api.swanlab.cn"),
        ("wandb", "api.forge.coreweave.com"),
    ],
)
def test_a_default_is_tried_of_trackers_that_are_online(tried: list[str], name: str, host: str) -> None:
    def looked(environment: dict[str, str]) -> list[str]:
        tried.clear()
        for each in look_at_login(name, declared(name), environment).servers:
            servers.look_at_server(name, each)()
        return list(tried)

    declaration = declared(name)
    (variable,) = declaration.servers[0].variables[:1]
    assert looked(LOGINS[name]) == [f"{host}:443"]
    assert looked({**LOGINS[name], variable: "http://mine:8000"}) == ["mine:8000"]
    assert looked({}) == []
    assert looked({**LOGINS[name], "OTEL_TRACKING_DELIVERY": "off"}) == []
    for switch in declaration.switches:
        on = {"COMET_START_ONLINE": "0", "CLEARML_OFFLINE_MODE": "1", "DVC_STUDIO_OFFLINE": "1"}
        on |= {"TRAINS_OFFLINE_MODE": "1"}
        assert looked({**LOGINS[name], switch.variable: on.get(switch.variable, "offline")}) == []


def test_a_default_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(
        Server(variables=("WANDB_BASE_URL",), default="http://127.0.0.1:1"), offline="WANDB_MODE=offline"
    )
    assert found.state is State.PROBLEM
    assert found.text == "127.0.0.1:1 (its default server) can't be reached (Connection refused)"
    assert found.fix.startswith(
        "let this machine reach 127.0.0.1:1, or set WANDB_BASE_URL to a server of yours, "
        "or set WANDB_MODE=offline; "
    )


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("wandb", ".config/wandb/settings", "[default]\nbase_url = http://mine:8000\n"),
        ("wandb", "wandb/settings", "[default]\nbase_url: http://mine:8000\n"),
        ("clearml", "clearml.conf", 'api {\n # api_server: http://no\n api_server: "http://mine:8000"\n}'),
        ("comet_ml", ".comet.config", "[comet]\nurl_override=http://mine:8000/clientlib/\n"),
        ("comet_ml", ".env", "COMET_URL_OVERRIDE='http://mine:8000/clientlib/'\n"),
        ("swanlab", ".swanlab/.netrc", "machine http://mine:8000\nlogin http://mine\npassword s3cr3t\n"),
    ],
)
def test_a_server_that_a_file_names(
    tmp_path: Path, tried: list[str], name: str, file: str, text: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    for server in look_at_login(name, declared(name), {**LOGINS[name], "HOME": str(tmp_path)}).servers:
        servers.look_at_server(name, server)()
    assert tried == ["mine:8000"]


def test_a_key_that_names_its_server(tried: list[str]) -> None:
    standing = look_at_login("comet_ml", declared("comet_ml"), {"COMET_API_KEY": "abc*eyJiYXNlVXJsIjoi"})
    assert standing.servers == ()


def test_servers_are_tried_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3)
    monkeypatch.setattr(servers, "knock", lambda address, seconds: together.wait(60))
    monkeypatch.setattr(servers, "PATIENCE", 120.0)
    named = [servers.Named(SERVER, f"http://host{n}", "SERVER") for n in range(3)]
    looks = [servers.look_at_server("a tracker", each) for each in named]
    assert {each().state for each in looks} == {State.OK}


def test_a_server_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(servers, "knock", lambda address, seconds: done.wait())
    monkeypatch.setattr(servers, "PATIENCE", 0.05)
    try:
        found = servers.look_at_server("a tracker", servers.Named(SERVER, "http://host", "SERVER"))()
    finally:
        done.set()
    assert found.text == "host:80 of SERVER can't be reached (no answer)"


def test_the_limits_keep_the_command_short() -> None:
    assert servers.TIMEOUT <= 3
    assert servers.PATIENCE < 5


def test_packets_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 0.05)
    monkeypatch.setattr(servers, "PATIENCE", 60.0)  # it is the connection that gives up
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        try:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            found = servers.look_at_server("a tracker", servers.Named(SERVER, url, "SERVER"))()
        finally:
            for each in waiting:
                each.close()
    assert found.state is State.PROBLEM
    assert found.text.endswith("of SERVER can't be reached (no answer)")


def test_a_name_that_nobody_can_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def knock(address: Address, seconds: float) -> None:
        raise UnicodeError("label too long")

    monkeypatch.setattr(servers, "knock", knock)
    found = servers.look_at_server("a tracker", servers.Named(SERVER, "http://host", "SERVER"))()
    assert found.text == "host:80 of SERVER can't be reached (label too long)"


def test_a_server_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, tried: list[str]) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy:3128")
    monkeypatch.setenv("SERVER", "https://host")
    found = look(SERVER)
    assert found.state is State.NOTE
    assert found.text == "host:443 of SERVER is behind a proxy that the environment names: it was not tried"
    assert found.fix == "add host to NO_PROXY if it is reached without"
    assert not tried
    monkeypatch.setenv("NO_PROXY", "host")
    assert look(SERVER).state is State.OK
    assert tried == ["host:443"]
