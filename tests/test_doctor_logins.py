"""Which logins and which switches `otel-tracking doctor` knows, of the trackers as they are declared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clearml.backend_config.converters import safe_text_to_bool

from otel_tracking import discovery
from otel_tracking.capabilities import Declaration, File, Folder, Netrc, Server
from otel_tracking.doctor import trackers
from otel_tracking.doctor.finding import Finding, State
from otel_tracking.doctor.logins import Standing, look_at_login
from otel_tracking_exporters._comet_ml_experiment import is_offline

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING_FACE_", "XDG_")) or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def standing(name: str, **environment: str) -> Standing:
    declaration = discovery.declaration(name)
    assert declaration is not None
    found = look_at_login(name, declaration, environment)
    assert SECRET not in repr(found.findings)
    return found


def only(name: str, **environment: str) -> Finding:
    (finding,) = standing(name, **environment).findings
    return finding


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_netrc_with_a_login_for_another_host(home: Path) -> None:
    write(home / ".netrc", f"machine github.com login me password {SECRET}\n")
    found = only("wandb")
    assert found.state is State.PROBLEM
    assert found.text == "there is no login; ~/.netrc has none for api.forge.coreweave.com"
    assert found.fix == "set WANDB_API_KEY, or WANDB_MODE=offline"


@pytest.mark.parametrize("machine", ["api.forge.coreweave.com", "api.wandb.ai"])
def test_a_netrc_with_a_login(home: Path, machine: str) -> None:
    write(home / ".netrc", f"machine {machine}\n  login user\n  password {SECRET}\n")
    found = only("wandb")
    assert (found.state, found.text) == (State.OK, "~/.netrc has a login for api.forge.coreweave.com")
    assert only("wandb", WANDB_BASE_URL="http://mine:8080").state is State.PROBLEM


def test_a_netrc_for_a_server_of_ones_own(home: Path) -> None:
    write(home / ".netrc", f"machine mine:8080 login user password {SECRET}\n")
    assert only("wandb", WANDB_BASE_URL="http://mine:8080/").state is State.OK
    assert only("wandb", WANDB_BASE_URL="http://mine:8081/").state is State.PROBLEM
    assert only("wandb").state is State.PROBLEM


def test_a_netrc_without_a_password(home: Path) -> None:
    write(home / ".netrc", "machine api.wandb.ai login user\n")
    assert only("wandb").state is State.PROBLEM


def test_a_netrc_elsewhere(home: Path, tmp_path: Path) -> None:
    write(home / ".netrc", f"machine api.wandb.ai login user password {SECRET}\n")
    write(tmp_path / "mine", f"machine github.com login user password {SECRET}\n")
    assert only("wandb", NETRC=str(tmp_path / "mine")).state is State.PROBLEM
    gone = only("wandb", NETRC=str(tmp_path / "gone"))
    assert gone.text == f"there is no login; {tmp_path}/gone of NETRC is not there"
    write(tmp_path / "mine", f"machine api.wandb.ai login user password {SECRET}\n")
    assert only("wandb", NETRC=str(tmp_path / "mine")).text.startswith("$NETRC has a login")


def test_a_netrc_that_cannot_be_parsed(home: Path) -> None:
    write(home / ".netrc", f"machine api.wandb.ai\nlogin user\n{SECRET} x\n")
    complaint, none = standing("wandb").findings
    assert complaint.state is none.state is State.PROBLEM
    assert complaint.text == f"line 3 of {home}/.netrc can't be read as a netrc file"
    assert complaint.fix == f"correct line 3 of {home}/.netrc"
    # Who does not read it is not bothered with it.
    assert only("wandb", WANDB_API_KEY=SECRET).state is State.OK
    assert only("wandb", WANDB_MODE="offline").state is State.OK
    assert only("mlflow").state is State.NOTE


def test_a_netrc_that_is_no_text(home: Path) -> None:
    (home / ".netrc").write_bytes(b"machine \xff\xfe\x00 login\n")
    complaint, _ = standing("wandb").findings
    assert complaint.fix == f"correct {home}/.netrc, or set NETRC to another file"


def test_half_a_login() -> None:
    found = only("clearml", CLEARML_API_ACCESS_KEY=SECRET)
    assert found.state is State.PROBLEM
    assert found.text == ("there is no login; CLEARML_API_ACCESS_KEY is set without CLEARML_API_SECRET_KEY")
    assert found.fix == "set CLEARML_API_SECRET_KEY, or CLEARML_OFFLINE_MODE=1"
    found = only("clearml", CLEARML_API_ACCESS_KEY=SECRET, CLEARML_API_SECRET_KEY=SECRET)
    assert found.text == "CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY are set"
    assert only("clearml", CLEARML_AUTH_TOKEN=SECRET).state is State.OK
    assert only("clearml").fix == (
        "set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or CLEARML_OFFLINE_MODE=1"
    )
    half = only("mlflow", MLFLOW_TRACKING_USERNAME="me")
    assert (half.state, half.fix) == (State.NOTE, "set MLFLOW_TRACKING_PASSWORD")
    assert only("mlflow", MLFLOW_TRACKING_URI=f"http://me:{SECRET}@h").state is State.OK


CONF = f'api {{\n  credentials {{\n    "access_key" = "A"\n    "secret_key" = "{SECRET}"\n  }}\n}}\n'


@pytest.mark.parametrize(
    ("name", "file", "text", "logs_in"),
    [
        ("clearml", "~/clearml.conf", CONF, True),
        ("clearml", "~/clearml.conf", "api { credentials { } }", False),
        ("clearml", "~/clearml.conf", f'# "secret_key" = "{SECRET}"', False),
        ("clearml", "clearml.conf", CONF, False),
        ("comet_ml", "~/.comet.config", f"[comet]\napi_key={SECRET}\n", True),
        ("comet_ml", ".comet.config", f"[comet]\napi_key = {SECRET}\n", True),
        ("comet_ml", ".env", f"COMET_API_KEY={SECRET}\n", True),
        ("comet_ml", "~/.comet.config", "[comet]\nworkspace=x\n# api_key=x\n", False),
        ("swanlab", "~/.swanlab/.netrc", f"machine api.swanlab.cn login x password {SECRET}\n", True),
        ("swanlab", ".swanlab/.netrc", f"machine https://mine login x password {SECRET}\n", True),
        ("swanlab", "~/.swanlab/.netrc", "", False),
        ("swanlab", "~/.netrc", f"machine api.swanlab.cn login x password {SECRET}\n", False),
        ("trackio", "~/.cache/huggingface/token", SECRET, True),
        ("trackio", "~/.cache/huggingface/token", "\n", False),
    ],
)
def test_logins_in_files(home: Path, name: str, file: str, text: str, logs_in: bool) -> None:
    write(Path(file).expanduser(), text)
    assert (only(name).state is State.OK) is logs_in


@pytest.mark.parametrize(
    ("name", "file", "text", "environment"),
    [
        ("clearml", "my.conf", CONF, {"CLEARML_CONFIG_FILE": "my.conf"}),
        ("comet_ml", "mine", f"api_key={SECRET}", {"COMET_CONFIG": "mine"}),
        ("comet_ml", "d/.comet.config", f"api_key={SECRET}", {"COMET_CONFIG": "d"}),
        ("swanlab", "d/.netrc", f"machine x login x password {SECRET}", {"SWANLAB_ROOT": "d"}),
        ("trackio", "d/token", SECRET, {"HF_HOME": "d"}),
        ("trackio", "mine", SECRET, {"HF_TOKEN_PATH": "mine"}),
    ],
)
def test_logins_in_files_that_are_elsewhere(
    name: str, file: str, text: str, environment: dict[str, str]
) -> None:
    write(Path(file), text)
    assert only(name, **environment).state is State.OK
    assert only(name).state is not State.OK


def test_a_key_of_another_server(home: Path) -> None:
    write(home / ".swanlab/.netrc", f"machine https://mine login x password {SECRET}\n")
    assert only("swanlab", SWANLAB_API_HOST="https://mine").state is State.OK
    assert only("swanlab", SWANLAB_API_HOST="https://other").state is State.PROBLEM


def test_what_works_without_a_login() -> None:
    found = only("trackio")
    assert found.state is State.NOTE
    assert found.text == "no login (HF_TOKEN, HUGGING_FACE_HUB_TOKEN); only needed for `space_id`"


@pytest.mark.parametrize(
    ("name", "variable", "offline", "online"),
    [
        ("wandb", "WANDB_MODE", ("offline", "disabled", "dryrun"), ("online", "shared", "run", "")),
        ("swanlab", "SWANLAB_MODE", ("offline", "local", "disabled", '"offline"'), ("online", "")),
        ("comet_ml", "COMET_START_ONLINE", ("0", "false", "no", "False", "NO"), ("1", "true", "")),
        (
            "clearml",
            "CLEARML_OFFLINE_MODE",
            ("1", "true", "True", "yes", "y", "on", "2.9"),
            ("0", "false", "no", "off", "N", ""),
        ),
        ("clearml", "OTEL_TRACKING_DELIVERY", ("off",), ("thread", "process", "")),
    ],
)
def test_switches(name: str, variable: str, offline: tuple[str, ...], online: tuple[str, ...]) -> None:
    for value in offline:
        found = only(name, **{variable: value})
        assert (found.state, found.text) == (State.OK, f"no login, and none needed: {variable}={value}")
    for value in online:
        assert only(name, **{variable: value}).state is State.PROBLEM


def test_switches_are_what_the_packages_make_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1", "0", "true", "FALSE", "yes", "no", "On", "off", "n", "f", "t", "x", "2.31"):
        is_ok = only("clearml", CLEARML_OFFLINE_MODE=value).state is State.OK
        assert is_ok is safe_text_to_bool(value), value
        monkeypatch.setenv("COMET_START_ONLINE", value)
        is_ok = only("comet_ml", COMET_START_ONLINE=value).state is State.OK
        assert is_ok is is_offline({}), value


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All packages can be imported, without that being done."""
    monkeypatch.setattr(trackers, "_import", lambda name: "")
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("trackio", "TRACKIO_DIR"),
        ("clearml", "CLEARML_CACHE_DIR"),
        ("wandb", "WANDB_DIR"),
        ("wandb", "WANDB_CACHE_DIR"),
        ("wandb", "WANDB_DATA_DIR"),
    ],
)
def test_folders(tmp_path: Path, looked: pytest.MonkeyPatch, name: str, variable: str) -> None:
    looked.setenv(variable, str(tmp_path / "new"))
    texts = {each.text: each for each in trackers.look_at_trackers([name])}
    assert texts[f"{tmp_path}/new can be made"].state is State.OK
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    looked.setenv(variable, str(tmp_path / "file"))
    texts = {each.text: each for each in trackers.look_at_trackers([name])}
    found = texts[f"{tmp_path}/file is no folder"]
    assert (found.state, found.fix) == (State.PROBLEM, f"remove it, or set {variable} to another folder")


def test_folders_by_default(home: Path, looked: pytest.MonkeyPatch) -> None:
    looked.delenv("TRACKIO_DIR")
    looked.delenv("CLEARML_CACHE_DIR")
    texts = [each.text for each in trackers.look_at_trackers(["clearml", "trackio"])]
    assert f"{home}/.clearml/cache can be made" in texts
    assert f"{home}/.cache/huggingface/trackio can be made" in texts


def test_a_tracker_from_a_package_of_its_own_gets_the_same(
    home: Path, tmp_path: Path, looked: pytest.MonkeyPatch
) -> None:
    declaration = Declaration(
        title="Mine",
        package="pytest",
        offline="MINE=off",
        capabilities={},
        credentials=(("MINE_USER", "MINE_KEY"),),
        credential_files=(File(("~/.mine",)), Netrc()),
        servers=(Server(variables=("MINE_URL",), default="http://127.0.0.1:1"),),
        folders=(Folder(("$MINE_DIR",)),),
        needs_login=True,
    )
    looked.setattr(discovery, "declaration", lambda name: declaration)
    looked.setattr(discovery, "installed_version", lambda name: "1")
    looked.setenv("MINE_DIR", "/proc/mine")
    looked.setenv("MINE_USER", "me")
    _, folder, login = trackers.look_at_trackers(["tensorboard"])
    assert folder.text.startswith("/proc/mine can't be written")
    assert "set MINE_DIR to" in folder.fix
    assert (login.state, login.fix) == (State.PROBLEM, "set MINE_KEY, or MINE=off")
    (home / ".mine").touch()
    _, _, login, server = trackers.look_at_trackers(["tensorboard"])
    assert login.text == "~/.mine has a login"
    assert server.text.startswith("127.0.0.1:1 (its default server) can't be reached")
