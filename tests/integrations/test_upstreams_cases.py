"""What Accelerate's own tests of its trackers ask for, asked of ours: configuration, values, native words."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import tracking as upstream
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import ProjectConfiguration

import otel_tracking as ot
from otel_tracking import discovery
from otel_tracking.integrations.accelerate import Accelerator, OtelTracker
from tests import readback
from tests.contract.stored import Stored, readers
from tests.readback import double

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TRACKERS = sorted(discovery.known())
CONFIG = {"num_iterations": 12, "learning_rate": 1e-2, "some_boolean": False, "some_string": "some_value"}

PROGRAM = f"""
from otel_tracking.integrations.accelerate import Accelerator

accelerator = Accelerator(log_with="all", project_dir="outputs")
options = {{"wandb": {{"tags": ["my_tag"]}}, "swanlab": {{"tags": ["my_tag"], "description": "of swanlab"}}}}
accelerator.init_trackers("cases", {CONFIG!r}, options, resume=None)
accelerator.log({{"total_loss": 0.1, "iteration": 1, "my_text": "some_value"}}, step=0)
accelerator.log({{"total_loss": 0.2}})
accelerator.log({{"total_loss": 0.3}})
accelerator.log({{"total_loss": 0.4}}, step=3)
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    """By tracker."""
    place = tmp_path_factory.mktemp("cases")
    environment = os.environ | {
        "TRACKIO_DIR": str(place / "trackio"),
        "CLEARML_CACHE_DIR": str(place / "clearml"),
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=place, env=environment, check=True, capture_output=True
    )
    (run,) = (path.parent.name for path in (place / "outputs" / "cases").glob("*/run.json"))
    return {name: reader.read_run(place, "outputs", "cases", run) for name, reader in readers().items()}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_configuration(stored: dict[str, Stored], tracker: str) -> None:
    config = stored[tracker].config
    if tracker == "clearml":
        wanted = {"12", "0.01", "False", "some_value"}
        assert {config[f"General/{name}"] for name in CONFIG} == wanted
    else:
        assert {name: config[name] for name in CONFIG} == CONFIG


@pytest.mark.parametrize("tracker", TRACKERS)
def test_values(stored: dict[str, Stored], tracker: str) -> None:
    """Calls without a step count by themselves, each series for itself."""
    reader = readers()[tracker]
    points = stored[tracker].points
    found = sorted((p.step, round(double(p.value), 6)) for p in points[reader.name("total_loss")])
    wanted = [(0, 0.1), (0, 0.2), (1, 0.3), (3, 0.4)]
    if tracker == "swanlab":  # has one point a step, and keeps the first
        wanted.remove((0, 0.2))
    assert found == wanted
    assert [(p.step, double(p.value)) for p in points[reader.name("iteration")]] == [(0, 1.0)]
    assert "some_value" in stored[tracker].texts


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_trackers_do_not_begin_distributed_training(tracker: str) -> None:
    """Accelerate's state is made by its Accelerator, with its settings, and by nothing before."""
    ot.Tracking(log_with=tracker, project_dir="outputs")
    assert PartialState._shared_state == {}
    Accelerator(log_with=tracker, project_dir="outputs")
    assert PartialState._shared_state != {}


INSTANCES: dict[str, dict[str, Any]] = {
    "TensorBoardTracker": {"run_name": "test", "logging_dir": "outputs"},
    "WandBTracker": {"run_name": "test"},
    "TrackioTracker": {"run_name": "test"},
    "CometMLTracker": {"run_name": "test"},
    "AimTracker": {"run_name": "test", "logging_dir": "outputs"},
    "MLflowTracker": {"experiment_name": "test", "logging_dir": "outputs"},
    "ClearMLTracker": {"run_name": "test"},
    "DVCLiveTracker": {"dir": "outputs"},
    "SwanLabTracker": {"run_name": "test"},
}


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_of_accelerates_trackers(name: str) -> None:
    """They need no directory of the Accelerator's, and are begun by `init_trackers`."""
    tracker = getattr(upstream, name)(**INSTANCES[name])
    assert PartialState._shared_state == {}
    accelerator = Accelerator(log_with=tracker)
    assert PartialState._shared_state != {}
    assert accelerator.trackers == []


def test_a_tensor() -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir="outputs")
    accelerator.init_trackers("tensor")
    accelerator.log({"tensor": torch.tensor(1)}, step=0)
    accelerator.end_training()
    (run,) = (path.parent for path in Path("outputs/tensor").glob("*/run.json"))
    assert [(p.step, double(p.value)) for p in readback.tensorboard(run)["tensor"]] == [(0, 1.0)]


def test_a_directory_beside_a_configuration() -> None:
    with pytest.raises(ValueError, match="Logging with `tensorboard` requires a `logging_dir`"):
        Accelerator(log_with="tensorboard", project_config=ProjectConfiguration(total_limit=30))
    Accelerator(log_with="tensorboard", project_dir="x", project_config=ProjectConfiguration(total_limit=30))


def test_what_is_given_stays_as_it_was() -> None:
    """Also what MLflow has no room for as a parameter."""
    config = {"learning_rate": 0.001, "too_long": "x" * 100_000, "nested": {"a": [1, 2]}}
    values = {"loss": 0.1}
    options = {"mlflow": {"synchronous": True}}
    accelerator = Accelerator(log_with=["mlflow", "tensorboard"], project_dir="outputs")
    accelerator.init_trackers("given", config)
    accelerator.log(values, step=1, log_kwargs=options)
    accelerator.end_training()
    assert config == {"learning_rate": 0.001, "too_long": "x" * 100_000, "nested": {"a": [1, 2]}}
    assert (values, options) == ({"loss": 0.1}, {"mlflow": {"synchronous": True}})
    (run,) = readback.mlflow_runs(Path("outputs"), "given")
    assert run.data.params["learning_rate"] == "0.001"
    assert len(run.data.params["too_long"]) < 100_000
    assert run.data.metrics == {"loss": 0.1}


def test_files_and_figures_in_mlflow() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    accelerator = Accelerator(log_with="mlflow", project_dir="outputs")
    accelerator.init_trackers("files")
    tracker = accelerator.get_tracker("mlflow")
    figure = plt.figure()
    tracker.log_figure(figure, artifact_file="figure.png")
    plt.close(figure)
    Path("folder").mkdir()
    Path("folder/dummy.txt").write_text("content")
    tracker.log_artifact("folder/dummy.txt", artifact_path="one")
    tracker.log_artifacts("folder", artifact_path="all")
    accelerator.end_training()
    (run,) = readback.mlflow_runs(Path("outputs"), "files")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "figure.png").exists()
    assert (artifacts / "one" / "dummy.txt").read_text() == "content"
    assert (artifacts / "all" / "dummy.txt").read_text() == "content"


CLEARML = """
import json
import numpy as np
import pandas as pd
from otel_tracking.integrations.accelerate import Accelerator

accelerator = Accelerator(log_with="clearml")
accelerator.init_trackers("native")
tracker = accelerator.get_tracker("clearml")
tracker.log({"should_be_under_train": 1, "eval/value": 2}, step=1)
tracker.log({"single": 1.5})
base = np.eye(64, dtype=np.uint8) * 255
tracker.log_images({"grey": base, "colour": np.stack([base] * 3, axis=2)}, step=1)
tracker.log_table("with columns", columns=["A", "B"], data=[[1, 3], [2, 4]])
tracker.log_table("without", data=[["A", "B"], [7, 9]])
tracker.log_table("frame", dataframe=pd.DataFrame({"A": [1, 2], "B": [3, 4]}), step=1)
print(accelerator.get_tracker("clearml", unwrap=True).get_offline_mode_folder())
accelerator.end_training()
"""


def test_native_calls_of_clearml(run_script: Run, tmp_path: Path) -> None:
    said = run_script(CLEARML, env={"CLEARML_CACHE_DIR": str(tmp_path / "clearml")}).stdout
    (folder,) = (Path(line) for line in said.splitlines() if line.startswith("/"))
    events = [
        event for line in (folder / "metrics.jsonl").read_text().splitlines() for event in json.loads(line)
    ]
    scalars = {(e["metric"], e["variant"], e.get("iter")): e["value"] for e in events if "value" in e}
    assert scalars["should_be_under_train", "should_be_under_train", 1] == 1
    assert scalars["eval", "value", 1] == 2
    assert [value for (_, variant, _), value in scalars.items() if variant == "single"] == [1.5]
    assert len(list((folder / "data").rglob("*.jpeg"))) == 2
    plots = {e["metric"]: json.loads(e["plot_str"])["data"][0] for e in events if "plot_str" in e}
    assert plots["with columns"]["cells"]["values"] == [[1, 2], [3, 4]]
    assert plots["without"]["header"]["values"] == ["A", "B"]
    assert plots["frame"]["cells"]["values"] == [[1, 2], [3, 4]]


class CSVTracker(GeneralTracker):  # type: ignore[misc]  # Accelerate has no types
    """Writes rows, and opens its file in `start`."""

    name = "csv"
    requires_logging_directory = False
    columns = ("total_loss", "iteration", "my_text", *CONFIG)

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.writer: Any = None

    def start(self) -> None:
        self.file = Path(self.folder, "log.csv").open("w")  # noqa: SIM115
        self.writer = csv.DictWriter(self.file, fieldnames=self.columns)
        self.writer.writeheader()

    @property
    def tracker(self) -> Any:
        return self.writer

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.writer.writerow(values)

    def log(self, values: dict[str, Any], step: int | None) -> None:
        self.writer.writerow(values)

    def finish(self) -> None:
        self.file.close()


def test_a_custom_tracker(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with=CSVTracker(str(tmp_path)))
    accelerator.init_trackers("custom", CONFIG)
    accelerator.log({"total_loss": 0.1, "iteration": 1, "my_text": "some_value"}, step=0)
    accelerator.end_training()
    with (tmp_path / "log.csv").open() as file:
        config, row = csv.DictReader(file)
    empty = dict.fromkeys(CSVTracker.columns, "")
    assert config == empty | {name: str(value) for name, value in CONFIG.items()}
    assert row == empty | {"total_loss": "0.1", "iteration": "1.0", "my_text": "some_value"}


def test_a_class_that_can_not_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside `otel`, which is registered like any other."""
    monkeypatch.setattr(upstream, "LOGGER_TYPE_TO_CLASS", dict(upstream.LOGGER_TYPE_TO_CLASS))
    for wrong in (dict, type("Nameless", (GeneralTracker,), {"requires_logging_directory": False})):
        with pytest.raises(ValueError, match=r"name|GeneralTracker"):
            upstream.register_tracker_class(wrong)
    upstream.register_tracker_class(CSVTracker)
    with pytest.warns(UserWarning, match="csv"):
        upstream.register_tracker_class(type("Shadow", (CSVTracker,), {}))
    assert upstream.LOGGER_TYPE_TO_CLASS["otel"] is OtelTracker


def test_none_as_keywords(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with=CSVTracker(str(tmp_path)))
    accelerator.init_trackers("custom", init_kwargs=None)
    accelerator.log({"total_loss": 0.1}, step=0, log_kwargs=None)
    accelerator.end_training()
    assert accelerator.tracking.receipt().complete


@pytest.mark.parametrize("name", ["aim", "trackio"])
def test_native_images(run_script: Run, tmp_path: Path, name: str) -> None:
    image = "image" if name == "aim" else "[image]"
    source = f"""
import numpy as np
from otel_tracking.integrations.accelerate import Accelerator
accelerator = Accelerator(log_with="{name}", project_dir="outputs")
accelerator.init_trackers("images")
image = np.zeros((4, 5, 3), np.uint8)
accelerator.get_tracker("{name}").log_images({{"image": {image}}}, step=1)
accelerator.end_training()
"""
    run_script(source, env={"TRACKIO_DIR": str(tmp_path / "trackio")})
    if name == "aim":
        from aim import Repo

        (run,) = Repo(str(tmp_path / "outputs")).iter_runs()
        assert [found for found, _, _ in run.iter_sequence_info_by_type("aim.image")] == ["image"]
    else:
        import sqlite3

        with sqlite3.connect(tmp_path / "trackio" / "images.db") as database:
            rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
        assert [row["image"]["_type"] for row in rows if "image" in row] == ["trackio.image"]


def test_a_dataframe_is_a_table_everywhere() -> None:
    accelerator = Accelerator(log_with="mlflow", project_dir="outputs")
    accelerator.init_trackers("frames")
    accelerator.log_table(
        "frame", dataframe=pd.DataFrame({"A": [1, 2], "B": np.array([0.5, np.nan])}), step=1
    )
    accelerator.end_training()
    (run,) = readback.mlflow_runs(Path("outputs"), "frames")
    (path,) = Path(run.info.artifact_uri.removeprefix("file://")).rglob("*.json")
    assert json.loads(path.read_text())["columns"] == ["A", "B"]
