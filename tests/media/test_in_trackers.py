"""Media in trackers, beyond the contract: beside series of like names, and when a run goes on."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from aim import Repo
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image
from swanlab.proto.swanlab.metric.column.v1.column_pb2 import ColumnType
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from otel_tracking.media.histograms import encode_histogram, quantile_series
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaKind
from otel_tracking_exporters._wandb_file import read_history
from otel_tracking_exporters.mlflow import MLflowTracker
from otel_tracking_exporters.swanlab import SwanLabTracker
from tests import readback
from tests.contract import stored
from tests.contract.place import Place
from tests.contract.stored_media import swanlab_records

Run = Callable[..., "subprocess.CompletedProcess[str]"]

LIKE_NAMES = """
import otel_tracking as ot

tracking = ot.Tracking(log_with=["mlflow", "swanlab"], project_dir=".", run_id="one")
tracking.init_trackers("p")
for step in range(3):
    for part in ("mean", "histogram/mean"):
        tracking.log({f"weights/{part}": 100.0 + step}, step=step)
    tracking.log_histogram({"weights": [step + 0.0, step + 2.0]}, step=step)
    tracking.log({"weights/max": 200.0 + step}, step=step)
tracking.end_training()
receipt = tracking.receipt()
assert receipt.complete and not any(t.dropped for t in receipt.trackers.values()), receipt
"""


def test_quantiles_are_no_points_of_other_series(run_script: Run, tmp_path: Path) -> None:
    run_script(LIKE_NAMES)
    (run,) = readback.mlflow_runs(tmp_path, "p")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = {
        name: [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        for name in ("weights/mean", "weights/max", "weights_x2f_histogram/mean", "weights/histogram/mean")
    }
    theirs, means = [100.0, 101.0, 102.0], [1.0, 2.0, 3.0]
    assert list(found.values()) == [theirs, [200.0, 201.0, 202.0], theirs, means]

    place = Place(tmp_path, tmp_path, "p", "one")
    in_swanlab = {
        name: [readback.double(point.value) for point in points]
        for name, points in stored.swanlab(place).points.items()
    }
    assert in_swanlab["weights/mean"] == theirs
    assert in_swanlab["weights_x2f_histogram/mean"] == theirs
    assert in_swanlab["weights/histogram/mean"] == means
    assert in_swanlab["weights/max"] == [200.0, 201.0, 202.0]
    assert in_swanlab["weights/histogram/max"] == [2.0, 3.0, 4.0]


PARTS = st.sampled_from(
    [
        "a",
        "/",
        "histogram",
        "/histogram",
        "/mean",
        "/histogram/mean",
        "_x2f_",
        "_x2f",
        "_",
        " ",
        ".",
        "é",
        "z" * 240,
    ]
)
TAGS = st.lists(PARTS, max_size=6).map("".join)


@pytest.mark.parametrize("names", [MLflowTracker.names, SwanLabTracker.names], ids=["mlflow", "swanlab"])
@given(tags=st.lists(TAGS, unique=True, max_size=6))
def test_no_series_has_the_name_of_a_quantile(names: NameRule, tags: list[str]) -> None:
    details = encode_histogram([1.0, 2.0]).details
    series = [names.escape(tag) for tag in tags]
    for tag in tags:
        found = quantile_series(Media(MediaKind.HISTOGRAM, tag, (), details, 0, 0, 0), names)
        assert all(len(name) <= names.max_length for name in found)
        series += found
    assert len(set(series)) == len(series)


ONE_KIND = """
import json
import numpy as np
import otel_tracking as ot

tracking = ot.Tracking(log_with=["aim", "swanlab", "tensorboard"], project_dir=".", run_id="one")
tracking.init_trackers("p", config={"lr": 0.1})
values = iter(range(10))
for name in ("a", "a/series", "a (series)"):
    tracking.log_text({name: f"text of {name}"}, step=0)
    tracking.log({name: 1.0 + next(values)}, step=0)
for name in ("b", "b/image", "b (image)"):
    tracking.log({name: 1.0 + next(values)}, step=0)
for shade, name in enumerate(("b", "c/image", "c (image)", "b/image", "b (image)")):
    tracking.log_images({name: np.full((2, 2), shade, np.uint8)}, step=0)
tracking.log({"c/image": 7.0}, step=0)
tracking.end_training()
receipts = tracking.receipt().trackers
assert not any(r.dropped or r.not_stored or r.errors for r in receipts.values()), receipts
print(json.dumps({name: {**r.altered, **r.stored_altered} for name, r in receipts.items()}))
"""


def images_in(tracker: str, place: Place) -> dict[str, list[int]]:
    """The first pixels of images, by the names that the tracker has them under."""
    found: dict[str, list[int]] = {}
    for name, content in _images_in(tracker, place):
        with Image.open(io.BytesIO(content)) as image:
            found.setdefault(name, []).append(int(np.asarray(image.convert("L"))[0, 0]))
    return found


def _images_in(tracker: str, place: Place) -> Iterator[tuple[str, bytes]]:
    if tracker == "aim":
        (run,) = Repo(os.fspath(place.root)).iter_runs()
        for name, context, _ in run.iter_sequence_info_by_type("aim.image"):
            for value in run.get_image_sequence(name, context).values.values_list():
                yield name, bytes(value.storage["data"].load())
    elif tracker == "tensorboard":
        events = EventAccumulator(str(place.run), size_guidance={"images": 0}).Reload()
        for name in events.Tags()["images"]:
            yield from ((name, event.encoded_image_string) for event in events.Images(name))
    else:
        (folder,) = (place.run / "swanlog").glob("run-*")
        for record in swanlab_records(folder):
            if record.HasField("media") and record.media.type == ColumnType.COLUMN_TYPE_IMAGE:
                for item in record.media.value.items:
                    yield record.media.key, (folder / "media" / "image" / item.filename).read_bytes()


def test_no_two_names_share_a_place(run_script: Run, tmp_path: Path) -> None:
    """A name has one kind of data: what has the name of another kind goes where no other name does."""
    receipts = json.loads(run_script(ONE_KIND).stdout.splitlines()[-1])
    place = Place(tmp_path, tmp_path, "p", "one")
    apart = {"a (series)": 1.0, "a/series (series)": 2.0, "a_x20_(series) (series)": 3.0}
    own = {"a": 1.0, "a/series": 2.0, "a_x20_(series)": 3.0}
    others = {"b": 4.0, "b/image": 5.0, "b_x20_(image)": 6.0, "c/image (series)": 7.0}
    pictures = {
        "b (image)": [0],
        "c/image": [1],
        "c_x20_(image)": [2],
        "b/image (image)": [3],
        "b_x20_(image) (image)": [4],
    }
    for tracker in ("aim", "swanlab", "tensorboard"):
        points = getattr(stored, tracker)(place).points
        found = {name: [readback.double(point.value) for point in each] for name, each in points.items()}
        series = others | (own if tracker == "tensorboard" else apart)
        assert found == {name: [value] for name, value in series.items()}
        assert images_in(tracker, place) == pictures
        said = receipts[tracker]
        told = "the name has other data"
        assert said[f"stored as <name> (image): {told}"] == 3
        # TensorBoard has texts under tags of their own.
        assert said.get(f"stored as <name> (series): {told}", 0) == (1 if tracker == "tensorboard" else 4)


TABLES = """
import os, signal, sys
import otel_tracking as ot

half = int(sys.argv[1])
tracking = ot.Tracking(log_with="aim", project_dir=".", run_id="one")
tracking.init_trackers("p")
tracking.log_table("rows", columns=["a"], data=[[half]], step=half)
tracking.log_html({"page": f"<b>{half}</b>"}, step=half)
tracking.log_histogram({"uneven": ([1, 2], [0.0, 1.0, 10.0])}, step=half)
tracking.log_html({"early": f"<i>{half}</i>"}, step=-1)
assert tracking.flush(60)
if half == 0:
    os.kill(os.getpid(), signal.SIGKILL)
tracking.end_training()
assert not tracking.receipt().trackers["aim"].errors
"""


def test_in_aim_a_series_stays_one_when_a_run_goes_on(run_script: Run, tmp_path: Path) -> None:
    assert run_script(TABLES, "0", check=False).returncode == -signal.SIGKILL
    run_script(TABLES, "1")
    (run,) = Repo(os.fspath(tmp_path)).iter_runs()
    found = {
        (name, context.to_dict().get("repetition", 1)): len(
            run.get_text_sequence(name, context).values.values_list()
        )
        for name, context, _ in run.iter_sequence_info_by_type(("aim.text", "list(aim.text)"))
    }
    assert found == {("rows", 1): 2, ("page", 1): 2, ("uneven", 1): 2, ("early", 1): 1, ("early", 2): 1}


OVERLAYS = """
import json
import numpy as np
import otel_tracking as ot
import wandb

trackers = ["wandb", "tensorboard", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab"]
position = {"middle": [1, 1], "width": 2, "height": 2}
boxes = {"box_data": [{"position": position, "domain": "pixel", "class_id": 3}], "class_labels": {3: "cat"}}
mask = {"mask_data": np.arange(12).reshape(3, 4), "class_labels": {0: "sky"}}
plain = np.zeros((3, 4, 3), np.uint8)
image = wandb.Image(plain, caption="over", boxes={"found": boxes}, masks={"seen": mask})
with ot.Tracking(log_with=trackers, project_dir=".", run_id="one") as tracking:
    tracking.init_trackers("p")
    tracking.log_images({"image": [image, plain]}, step=1)
    tracking.log_table("table", columns=["image"], data=[[image]], step=1)
    tracking.end_training()
receipts = tracking.receipt().trackers
assert not any(receipt.errors for receipt in receipts.values()), receipts
reason = "boxes and masks on images are not stored"
print(json.dumps({name: receipt.stored_altered.get(reason, 0) for name, receipt in receipts.items()}))
"""


def test_boxes_and_masks(run_script: Run, tmp_path: Path) -> None:
    """W&B has them as its own; receipts of other trackers count them."""
    counts = json.loads(run_script(OVERLAYS).stdout.splitlines()[-1])
    assert counts == {
        "wandb": 0,
        "tensorboard": 1,
        "mlflow": 2,
        "trackio": 2,
        "comet_ml": 2,
        "aim": 2,
        "clearml": 2,
        "dvclive": 1,
        "swanlab": 2,
    }
    path = readback.wandb_file(tmp_path / "p" / "one")
    row = next(row for row in read_history(path) if "image.all_boxes" in row)
    boxes, no_boxes = row["image.all_boxes"]
    masks, no_masks = row["image.all_masks"]
    files = path.parent / "files"
    (box,) = json.loads((files / boxes["found"]["path"]).read_text())["box_data"]
    assert (box["position"], box["class_id"]) == ({"middle": [1, 1], "width": 2, "height": 2}, 3)
    mask = np.asarray(Image.open(files / masks["seen"]["path"]))
    assert np.array_equal(mask, np.arange(12).reshape(3, 4))
    assert (no_boxes, no_masks) == (None, None)


MOVING = """
import io, sys
import numpy as np
from PIL import Image
import otel_tracking as ot

frames = [Image.fromarray(np.full((4, 4), shade, np.uint8)) for shade in (10, 200)]
frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
frames[0].save("still.gif")
tracking = ot.Tracking(log_with=["mlflow", "aim"], project_dir=".", run_id="one")
tracking.init_trackers("p")
tracking.log_images({"moving": "moving.gif", "still": "still.gif"}, step=3)
tracking.end_training()
receipts = tracking.receipt().trackers
assert not any(r.not_stored or r.errors for r in receipts.values()), receipts
assert receipts["mlflow"].stored_altered == {}, receipts
assert receipts["aim"].stored_altered == {"an image that moves is its first frame": 1}, receipts
"""


def test_an_image_that_moves(run_script: Run, tmp_path: Path) -> None:
    """MLflow's page has its first frame, and an artifact all of it; Aim's receipt counts it."""
    run_script(MOVING)
    (run,) = readback.mlflow_runs(tmp_path, "p")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (folder,) = client.list_artifacts(run.info.run_id, "moving_images")
    (file,) = client.list_artifacts(run.info.run_id, folder.path)
    assert re.fullmatch(r"moving_images/moving/3-\d+-0\.gif", file.path)
    whole = client.download_artifacts(run.info.run_id, file.path, os.fspath(tmp_path))
    assert Path(whole).read_bytes() == (tmp_path / "moving.gif").read_bytes()
    shown = [each.path for each in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in shown if path.endswith(".png")]) == 2
