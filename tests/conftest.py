"""What every test gets: a clean offline environment, a directory of its own, and a few tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus
from otel_tracking.steps import set_step

# Of the machine the tests run on: a job's ranks, a shell's exporters, somebody's accounts.
FOREIGN_PREFIXES = (
    "ACCELERATE_",
    "AIM_",
    "CLEARML_",
    "COMET_",
    "DVCLIVE_",
    "DVC_",
    "MLFLOW_",
    "OMPI_",
    "OTEL_",
    "PMI_",
    "SLURM_",
    "SWANLAB_",
    "TORCHELASTIC_",
    "TRACKIO_",
    "WANDB_",
)
FOREIGN_NAMES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
}
OWN_NAMES = {"OTEL_TRACKING_TEST_BROWSER"}

QUIET_AND_OFFLINE = {
    "AIM_UI_TELEMETRY_ENABLED": "0",
    "CLEARML_OFFLINE_MODE": "1",
    "COMET_LOGGING_CONSOLE": "ERROR",
    "COMET_START_ONLINE": "0",
    "DVC_NO_ANALYTICS": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
    "SWANLAB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-size", action="store_true", help="run tests that come in two sizes at the full one"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, and so any tracker's SDK, is imported: SDKs read these at import."""
    for name in list(os.environ):
        if name in FOREIGN_NAMES or (name.startswith(FOREIGN_PREFIXES) and name not in OWN_NAMES):
            del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="otel-tracking-tests-", ignore_cleanup_errors=True)
    config.stash[_home] = home
    os.environ.update(QUIET_AND_OFFLINE)
    for name in (
        "HOME",
        "CLEARML_CACHE_DIR",
        "TRACKIO_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_DATA_DIR",
    ):
        directory = Path(home.name, name.lower())
        directory.mkdir()
        os.environ[name] = str(directory)


LONGEST = (
    "test_contract.py",
    "test_outage.py",
    "test_exit_paths.py",
    "test_stub_server.py",
    "test_kills.py",
    "test_mlflow.py",
    "test_training.py",
    "test_mlflow_page.py",
    "test_every_point.py",
    "test_all_at_once.py",
    "test_sweep.py",
    "test_examples.py",
    "test_upstreams_cases.py",
    "test_distributed.py",
    "test_perfetto.py",
    "test_failing_step.py",
    "test_full_disk.py",
)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_home].cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with `size` belong to `make soak` too; those that mount file systems, as root, to it alone.

    Files that take longest come first, so that at the end no worker waits for the other.
    """
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        if {"size", "mounted"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.soak)
    if not config.getoption("--full-size"):
        items[:] = [item for item in items if "mounted" not in getattr(item, "fixturenames", ())]


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test or an SDK writes to the working directory stays in `tmp_path`."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with its tables; making them takes MLflow a second and a half."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture(autouse=True)
def _mlflow_database(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The folder that the marker `mlflow_database` names has MLflow's tables already."""
    marker = request.node.get_closest_marker("mlflow_database")
    if marker is not None:
        folder = tmp_path / marker.args[0]
        folder.mkdir()
        shutil.copy(request.getfixturevalue("mlflow_template"), folder / "mlflow.db")


@pytest.fixture(autouse=True)
def _own_step() -> Iterator[None]:
    """The process's step ends with the test that set it."""
    yield
    set_step(None)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """`size(small, full)`: how much of something to test, the second under `make soak`.

    A test that asks for it is marked `soak`.
    """
    full_size = pytestconfig.getoption("--full-size")
    return lambda small, full: full if full_size else small


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`mounted(name, *options)`: a directory in `tmp_path` on which `mount *options` put a file system."""
    places: list[Path] = []

    def mount(name: str, *options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", *options, str(place)], check=True)
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_script(source or path, *args)`: a Python program in a process of its own, in `tmp_path`.

    For what a process can do only once, such as setting OpenTelemetry's providers. `env` adds to
    the tests' clean environment; `launcher` goes between the interpreter and the script
    (`("-m", "torch.distributed.run", "--nproc-per-node", "2")`). Fails with the output unless the
    program exits 0; `check=False` leaves the exit code to the caller.
    """

    def run(
        script: str | Path,
        *args: str,
        env: dict[str, str] | None = None,
        launcher: tuple[str, ...] = (),
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        if isinstance(script, str):
            source = script
            script = tmp_path / "script.py"
            script.write_text(source)
        done = subprocess.run(
            [sys.executable, *launcher, str(script), *args],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"{script.name} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Records into `./journal`."""
    recorder = Recorder()
    recorder.open(Path("journal"))
    yield recorder
    recorder.close(RunStatus.FINISHED)


@pytest.fixture
def provider(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> TrackingMeterProvider:
    """Records into `./journal`; its observables are looked at when a test says so."""
    monkeypatch.setattr("otel_tracking.provider._FIRST_SAMPLE", 3600)
    return TrackingMeterProvider(recorder, sample_interval=3600)
