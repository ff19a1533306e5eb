"""Accelerate's own Accelerator with our tracker in it, its trackers in ours, and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import accelerate
import pytest
import torch
from accelerate import tracking as upstream
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType, ProjectConfiguration

import otel_tracking as ot
from otel_tracking.blank import Blank
from otel_tracking.errors import ConfigurationError
from otel_tracking.integrations.accelerate import Accelerator, OtelTracker
from otel_tracking_exporters._wandb_file import read_history
from tests import readback


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Custom(GeneralTracker):  # type: ignore[misc]  # Accelerate has no types
    """As users of Accelerate write them."""

    name = "my.custom"
    requires_logging_directory = False
    made: ClassVar[list[Custom]] = []

    def __init__(self, run_name: str = "", **kwargs: Any) -> None:
        super().__init__()
        self.calls: list[Any] = [("made", run_name, kwargs)]
        self.made.append(self)

    @property
    def tracker(self) -> Any:
        return self.calls

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append(("log", values, step, kwargs))

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(
            ("images", {name: [image.size for image in images] for name, images in values.items()}, step)
        )

    def finish(self) -> None:
        self.calls.append("finish")


def run_of(project: str, place: str = "outputs") -> Path:
    (run,) = (path.parent for path in Path(place, project).glob("*/run.json"))
    return run


def test_ours_in_theirs() -> None:
    """`Accelerator(log_with="otel")` of the real one."""
    accelerator = accelerate.Accelerator(log_with="otel")
    options = {"log_with": ["tensorboard", "wandb"], "project_dir": "outputs"}
    accelerator.init_trackers("theirs", config={"lr": 0.5}, init_kwargs={"otel": options})
    accelerator.log({"loss": 0.25}, step=3)
    accelerator.log({"loss": 0.125}, step=4, log_kwargs={"otel": {"wandb": {"commit": True}}})
    tracker = accelerator.get_tracker("otel")
    tracker.log_images({"image": torch.zeros(3, 4, 4)}, step=3)
    tracker.log_table("table", columns=["a"], data=[[1]], step=3)
    tracking = accelerator.get_tracker("otel", unwrap=True)
    assert isinstance(tracking, ot.Tracking)
    accelerator.end_training()
    assert tracking.receipt().complete
    assert [point.step for point in readback.tensorboard(run_of("theirs"))["loss"]] == [3, 4]
    rows = read_history(readback.wandb_file(run_of("theirs")))
    assert [(row["training/step"], row["loss"]) for row in rows if "loss" in row] == [(3, 0.25), (4, 0.125)]
    assert {"image", "table"} <= {key.split(".")[0] for row in rows for key in row}


def test_theirs_in_ours() -> None:
    """An instance, and a class, which is made with the project and `init_kwargs`."""
    instance = Custom()
    for given in (instance, Custom):
        Custom.made.clear()
        accelerator = Accelerator(log_with=[given], project_dir="outputs")
        accelerator.init_trackers(
            "ours", config={"lr": 0.5}, init_kwargs={"my_custom": {"x": 1}} if given is Custom else None
        )
        accelerator.log({"loss": 0.25, "note": "text"}, step=3, log_kwargs={"my_custom": {"y": 2}})
        accelerator.log_images({"image": torch.zeros(2, 3, 4, 5)}, step=3)
        assert accelerator.tracking.flush()
        handle = accelerator.get_tracker("my_custom")
        calls = accelerator.get_tracker("my_custom", unwrap=True)
        accelerator.end_training()
        assert handle.calls is calls
        assert calls == [
            ("made", "ours", {"x": 1}) if given is Custom else ("made", "", {}),
            "start",
            ("config", {"lr": 0.5}),
            ("log", {"loss": 0.25, "note": "text"}, 3, {"y": 2}),
            ("images", {"image": [(5, 4), (5, 4)]}, 3),
            "finish",
        ]


def test_a_registered_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that `register_tracker_class` of Accelerate was told."""

    class InFolder(Custom):
        name = "in_folder"
        requires_logging_directory = True

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__(run_name, logging_dir=logging_dir)

    for made in (Custom, InFolder):
        monkeypatch.setitem(upstream.LOGGER_TYPE_TO_CLASS, made.name, made)
    with pytest.raises(ValueError, match="requires a `logging_dir`"):
        Accelerator(log_with="in_folder")
    Custom.made.clear()
    accelerator = Accelerator(log_with=["my.custom", "in_folder"], project_dir="outputs")
    accelerator.init_trackers("registered")
    accelerator.log({"loss": 0.25}, step=3)
    accelerator.end_training()
    custom, in_folder = sorted(Custom.made, key=lambda tracker: tracker.name, reverse=True)
    assert custom.calls[0] == ("made", "registered", {})
    assert in_folder.calls[0] == ("made", "registered", {"logging_dir": str(tmp_path / "outputs")})
    for tracker in Custom.made:
        assert tracker.calls[1:] == ["start", ("log", {"loss": 0.25}, 3, {}), "finish"]


def test_a_call_that_fails() -> None:
    """It is made again; what was logged after it waits, and is no dead letter for its sake."""

    class Choosy(Custom):
        failures = 0

        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            if step == 3 and Choosy.failures < 7:
                Choosy.failures += 1
                raise ValueError("not now")
            super().log(values, step, **kwargs)

    tracker = Choosy()
    accelerator = Accelerator(log_with=[tracker], project_dir="outputs")
    accelerator.init_trackers("choosy")
    accelerator.log({"loss": 0.25}, step=3)
    accelerator.log({"note": "text"}, step=4)
    accelerator.log({"loss": 0.5}, step=5)
    assert accelerator.tracking.flush(60)
    accelerator.end_training()
    receipt = accelerator.tracking.receipt().trackers["my_custom"]
    assert (receipt.delivered, receipt.dropped, receipt.pending) == (2, {}, 0)
    logged = [(values, step) for word, values, step, _ in (c for c in tracker.calls if c[0] == "log")]
    assert logged == [({"loss": 0.25}, 3), ({"note": "text"}, 4), ({"loss": 0.5}, 5)]


def test_names_of_accelerate(tmp_path: Path) -> None:
    """Its enum, a directory by `ProjectConfiguration`, and `all`."""
    configuration = ProjectConfiguration(project_dir=str(tmp_path / "p"), logging_dir=str(tmp_path / "l"))
    accelerator = Accelerator(log_with=LoggerType.MLFLOW, project_config=configuration)
    accelerator.init_trackers("names")
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    (run,) = readback.mlflow_runs(tmp_path / "l", "names")
    assert run.data.metrics == {"loss": 0.5}
    assert run_of("names", str(tmp_path / "p"))
    assert len(Accelerator(log_with="all", project_dir="outputs").tracking._trackers) == 9


def test_positional_arguments_are_upstreams() -> None:
    accelerator = Accelerator(True, False, "no", 2)
    assert accelerator.gradient_accumulation_steps == 2
    accelerator.log({"loss": 1.0})  # no trackers: nothing, as upstream
    accelerator.end_training()


def test_get_tracker() -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir="outputs")
    accelerator.init_trackers("handles")
    assert [handle.name for handle in accelerator.trackers] == ["tensorboard"]
    with pytest.raises(ValueError, match="'wandb' is no tracker of this run"):
        accelerator.get_tracker("wandb")
    accelerator.end_training()
    assert [handle.name for handle in accelerator.trackers] == ["tensorboard"]
    assert Accelerator(log_with="tensorboard", project_dir="outputs").trackers == []


def test_a_blank_tracker_off_the_wanted_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACKING_RUN_ID", "one")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracking = ot.Tracking(log_with="tensorboard", project_dir="outputs")
    tracking.init_trackers("blank")
    blank = tracking.get_tracker("tensorboard")
    assert isinstance(blank, Blank)
    blank.writer.add_scalar("a", 1.0, 0)
    blank.log({"a": 1.0}, step=0)
    blank.config["lr"] = 1.0
    assert not list(blank)
    tracking.end_training()


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    first = Accelerator(log_with="tensorboard", project_dir="outputs")
    prepared = first.prepare(model)
    first.init_trackers("checkpoints")
    first.log({"loss": 1.0}, step=0)
    first.save_state(str(tmp_path / "checkpoint"))
    run_id = first.tracking.run_id
    first.end_training()
    assert json.loads((tmp_path / "checkpoint" / "otel_tracking.json").read_text())["run_id"] == run_id

    second = Accelerator(log_with="tensorboard", project_dir="outputs")
    second.prepare(prepared)
    second.load_state(str(tmp_path / "checkpoint"))
    second.init_trackers("checkpoints")
    second.log({"loss": 0.5}, step=1)
    second.end_training()
    assert [point.step for point in readback.tensorboard(run_of("checkpoints"))["loss"]] == [0, 1]


def test_a_checkpoint_of_upstreams(tmp_path: Path) -> None:
    """It has no identity, and loads."""
    theirs = accelerate.Accelerator()
    model = theirs.prepare(torch.nn.Linear(2, 2))
    theirs.save_state(str(tmp_path / "checkpoint"))
    ours = Accelerator(log_with="tensorboard", project_dir="outputs")
    ours.prepare(model)
    ours.load_state(str(tmp_path / "checkpoint"))
    ours.init_trackers("new")
    ours.end_training()
    assert run_of("new")


def test_wrong_names() -> None:
    with pytest.raises(ConfigurationError, match="unknown tracker 'wandbb'"):
        Accelerator(log_with="wandbb")
    with pytest.raises(ConfigurationError, match="log_with takes names"):
        Accelerator(log_with=[5])
    assert OtelTracker.name == "otel"
