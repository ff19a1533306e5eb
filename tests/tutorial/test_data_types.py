"""The tutorial's data types, native objects, options of calls, and features of single trackers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import mlflow
import pytest
import torch
import wandb
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig  # type: ignore[import-untyped]

from otel_tracking.integrations.accelerate import Accelerator
from otel_tracking_exporters._wandb_file import read_history, read_wandb
from tests import readback
from tests.readback import bits
from tests.tutorial.conftest import only_run

matplotlib.use("Agg")


def began(*trackers: str) -> Accelerator:
    accelerator = Accelerator(log_with=list(trackers), project_dir="outputs")
    accelerator.init_trackers("types")
    return accelerator


def run() -> Path:
    return only_run(Path("outputs"), "types")


def events() -> Any:
    everything = dict.fromkeys(("scalars", "images", "tensors", "graph"), 0)
    return EventAccumulator(str(run()), size_guidance=everything).Reload()


def test_scalars() -> None:
    """10."""
    accelerator = began("tensorboard", "wandb", "mlflow")
    row = {"train/loss": 0.342, "train/accuracy": 0.87, "train/f1_score": 0.85}
    accelerator.log(row, step=100)
    accelerator.end_training()
    for tag, value in row.items():
        assert [(p.step, p.value) for p in readback.wandb(run())[tag]] == [(100, bits(value))]
        single = readback.as_float32(bits(value))
        assert [(p.step, p.value) for p in readback.tensorboard(run())[tag]] == [(100, single)]
    (stored,) = readback.mlflow_runs(Path("outputs"), "types")
    assert stored.data.metrics == row


def test_a_group() -> None:
    """11: upstream's TensorBoard tracker makes a sub-run for each class; here it is one chart, of series."""
    accelerator = began("tensorboard", "mlflow")
    accelerator.log({"class_accuracy": {"class_0": 0.92, "class_1": 0.88, "class_2": 0.90}}, step=100)
    accelerator.end_training()
    tags = {f"class_accuracy/class_{n}" for n in range(3)}
    assert set(readback.tensorboard(run())) == tags
    assert "custom_scalars__config__" in events().Tags()["tensors"]
    (stored,) = readback.mlflow_runs(Path("outputs"), "types")
    assert set(stored.data.metrics) == tags


def test_texts() -> None:
    """12: `step=`, where torch's own writer knows `global_step=` only; and one call for every tracker."""
    accelerator = began("tensorboard", "wandb")
    accelerator.get_tracker("tensorboard").writer.add_text(
        "predictions", "Sample prediction: positive", step=100
    )
    accelerator.get_tracker("tensorboard").writer.add_text("predictions", "negative", global_step=101)
    accelerator.log_text({"notes": "all is well"}, step=5)
    accelerator.end_training()
    found = events().Tensors("predictions/text_summary")
    assert [(e.step, e.tensor_proto.string_val[0].decode()) for e in found] == [
        (100, "Sample prediction: positive"),
        (101, "negative"),
    ]
    (row,) = (row for row in read_history(readback.wandb_file(run())) if "notes" in row)
    assert (row["notes"], row["training/step"]) == ("all is well", 5)


def test_images() -> None:
    """13: `wandb.Image` within `log_images`, which upstream's tracker wraps a second time, and fails."""
    accelerator = began("tensorboard", "wandb")
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8)
    accelerator.get_tracker("tensorboard").writer.add_image("generated_images", images[0], step=100)
    accelerator.get_tracker("wandb").log_images(
        {"samples": [wandb.Image(image) for image in images]}, step=100
    )
    accelerator.get_tracker("wandb").log_images({"plain": list(images)}, step=100)
    accelerator.log_images({"everywhere": images}, step=100)
    accelerator.end_training()
    (image,) = events().Images("generated_images")
    assert (image.step, image.width, image.height) == (100, 8, 8)
    assert events().Tags()["images"] == ["generated_images", *(f"everywhere/{n}" for n in range(4))]
    rows = read_history(readback.wandb_file(run()))
    for name in ("samples", "plain", "everywhere"):
        (row,) = (row for row in rows if f"{name}._type" in row)
        assert (row[f"{name}._type"], row[f"{name}.count"], row["training/step"]) == (
            "images/separated",
            4,
            100,
        )


def test_native_objects(model: torch.nn.Module) -> None:
    """15, 31: the run itself: gradients, files, alerts; offline too."""
    accelerator = began("wandb")
    native = accelerator.get_tracker("wandb", unwrap=True)
    assert isinstance(native, wandb.Run)
    native.watch(model, log="all", log_freq=1)
    torch.save(model.state_dict(), "model.pt")
    native.save("model.pt")
    for step in range(3):
        model(torch.ones(2, 4)).sum().backward()
        accelerator.log({"loss": 1.0}, step=step)
        accelerator.tracking.flush()
    native.alert(title="Training complete!", text="Model achieved 95% accuracy")
    native.log({"own": 1.0}, step=7)
    accelerator.end_training()
    found = read_wandb(readback.wandb_file(run()))
    assert found.alerts == [("Training complete!", "Model achieved 95% accuracy")]
    assert (readback.wandb_file(run()).parent / "files" / "model.pt").exists()
    names = {key for row in found.history for key in row}
    assert any(name.startswith("gradients/0.weight") for name in names)
    (row,) = (row for row in found.history if "own" in row)
    assert row["training/step"] == 7


def test_options_of_a_call() -> None:
    """16: `commit=False` joins the next row; `walltime` is the time of the event."""
    accelerator = began("tensorboard", "wandb")
    when = time.time() - 3600
    options: dict[str, Any] = {"wandb": {"commit": False}, "tensorboard": {"walltime": when}}
    accelerator.log({"train/loss": 0.5}, step=100, log_kwargs=options)
    accelerator.log({"train/accuracy": 0.75}, step=100)
    accelerator.end_training()
    (point,) = readback.tensorboard(run())["train/loss"]
    assert point.time_ns == pytest.approx(when * 1e9, abs=1000)
    rows = [row for row in read_history(readback.wandb_file(run())) if "train/loss" in row]
    assert [(row["train/loss"], row["train/accuracy"]) for row in rows] == [(0.5, 0.75)]


def test_a_graph(model: torch.nn.Module) -> None:
    """29."""
    accelerator = began("tensorboard")
    accelerator.get_tracker("tensorboard").writer.add_graph(model, torch.zeros(1, 4))
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    assert events().Tags()["graph"]
    assert len(events().Graph().node) > 5
    assert readback.tensorboard(run())["loss"]


def test_embeddings() -> None:
    """30: with labels and images."""
    accelerator = began("tensorboard")
    accelerator.get_tracker("tensorboard").writer.add_embedding(
        torch.randn(4, 3), metadata=["a", "b", "c", "d"], label_img=torch.rand(4, 3, 8, 8)
    )
    accelerator.end_training()
    config = text_format.Parse((run() / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    assert (run() / embedding.metadata_path).read_text().split() == ["a", "b", "c", "d"]
    assert len((run() / embedding.tensor_path).read_text().splitlines()) == 4


def test_tables() -> None:
    """32: images in cells, `step=`; by the handle, and by one call for every tracker.

    W&B keeps the images in an artifact of its own; the file that is read here names their type.
    """
    accelerator = began("wandb", "mlflow")
    columns = ["image", "prediction", "ground_truth"]
    images = torch.rand(2, 3, 4, 4)
    data = [[wandb.Image(image), label, "cat"] for image, label in zip(images, ("cat", "dog"), strict=True)]
    accelerator.get_tracker("wandb").log_table("predictions", columns=columns, data=data, step=2)
    accelerator.log_table("everywhere", columns=columns, data=data, step=2)
    accelerator.end_training()
    rows = read_history(readback.wandb_file(run()))
    for name in ("predictions", "everywhere"):
        (row,) = (row for row in rows if f"{name}._type" in row)
        assert (row[f"{name}.nrows"], row[f"{name}.ncols"], row["training/step"]) == (2, 3, 2)
        table = json.loads((readback.wandb_file(run()).parent / "files" / row[f"{name}.path"]).read_text())
        assert [line[1:] for line in table["data"]] == [["cat", "cat"], ["dog", "cat"]]
    (stored,) = readback.mlflow_runs(Path("outputs"), "types")
    (path,) = Path(stored.info.artifact_uri.removeprefix("file://")).glob("tables/everywhere/*.json")
    assert [line[1:] for line in json.loads(path.read_text())["data"]] == [["cat", "cat"], ["dog", "cat"]]


def test_an_artifact(model: torch.nn.Module) -> None:
    """33: a checkpoint of `save_state`, as an artifact of W&B's own making."""
    accelerator = Accelerator(log_with="wandb", project_dir="outputs")
    model = accelerator.prepare(model)
    accelerator.init_trackers("types")
    accelerator.save_state("final_model")
    artifact = wandb.Artifact("bert-finetuned", type="model")
    artifact.add_dir("final_model")
    accelerator.get_tracker("wandb", unwrap=True).log_artifact(artifact)
    accelerator.log_artifact("final_model", "checkpoint")
    accelerator.end_training()
    contents = readback.wandb_file(run()).read_bytes()
    assert b"bert-finetuned" in contents
    assert b"checkpoint" in contents
    assert json.loads(Path("final_model/otel_tracking.json").read_text())["run_id"] == run().name


def test_a_model_in_mlflow(model: torch.nn.Module) -> None:
    """34: a fluent call of the training thread, after `get_tracker(unwrap=True)`, logs into our run.

    MLflow wants an example of the input by now, for the format in which it stores models.
    """
    accelerator = began("mlflow")
    tracker = accelerator.get_tracker("mlflow", unwrap=True)
    example = torch.zeros(2, 4)
    mlflow.pytorch.log_model(
        model, name="model", registered_model_name="bert-classifier", input_example=example.numpy()
    )
    accelerator.log({"loss": 0.5}, step=0)
    accelerator.end_training()
    client = mlflow.MlflowClient(tracker.client.tracking_uri)
    (version,) = client.search_model_versions("name='bert-classifier'")
    assert version.run_id == tracker.run_id
    found = client.get_run(tracker.run_id)
    assert found.data.metrics == {"loss": 0.5}
    assert found.info.status == "FINISHED"
    assert mlflow.active_run() is None
    assert not mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]


def test_a_plot_in_mlflow() -> None:
    """35: `log_artifact` on the unwrapped object, which is a bare run upstream and has no such word."""
    import matplotlib.pyplot as plt

    accelerator = began("mlflow")
    figure = plt.figure()
    plt.plot([1.0, 0.5])
    plt.savefig("loss_curve.png")
    accelerator.get_tracker("mlflow", unwrap=True).log_artifact("loss_curve.png")
    accelerator.log_figure({"curve": figure}, step=1)
    plt.close(figure)
    accelerator.end_training()
    (stored,) = readback.mlflow_runs(Path("outputs"), "types")
    artifacts = Path(stored.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "loss_curve.png").read_bytes() == Path("loss_curve.png").read_bytes()
    assert list((artifacts / "images").glob("curve+step+1+*.png"))
