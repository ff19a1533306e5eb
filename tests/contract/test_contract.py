"""Every tracker that an entry point names: what it stored is what was recorded, or what it declares.

One program records into all trackers at once, is killed in the middle, and goes on in a second process.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otel_tracking import discovery
from otel_tracking.capabilities import Capability, Feature, Level, exact
from otel_tracking.config import to_jsonable
from otel_tracking.records import Media, MediaKind, Text
from tests import readback
from tests.contract import content, media
from tests.contract.media import STORAGE
from tests.contract.stored import Reader, readers
from tests.contract.stored_media import READERS as MEDIA_READERS
from tests.readback import Point, Points, bits

PROGRAM = Path(__file__).with_name("program.py")
ROOT = Path(__file__).parents[2]
TRACKERS = sorted(discovery.known())
READERS = readers()


def test_every_tracker_has_a_reader() -> None:
    assert sorted(READERS) == sorted(MEDIA_READERS) == sorted(STORAGE) == TRACKERS


@dataclass(frozen=True)
class Recorded:
    place: Path
    said: dict[str, Any]
    journal: Points
    texts: list[Text]
    media: list[Media]


@pytest.fixture(scope="module", params=["thread", "process"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """What the program did, with that delivery."""
    place = tmp_path_factory.mktemp(f"contract-{request.param}")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(place / "home"),
        "TRACKIO_DIR": str(place / "trackio"),
        "CLEARML_CACHE_DIR": str(place / "clearml"),
    }
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        environment[name] = str(place / "home" / name.lower())
    (place / "home").mkdir()
    said = ""
    for half, code in (("first", -9), ("second", 0)):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), half, request.param],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == code, done.stdout + done.stderr
        said = done.stdout
    run = place / "runs" / content.PROJECT / content.RUN_ID
    yield Recorded(place, json.loads(said.splitlines()[-1]), readback.journal(run), *media.journal(run))
    shutil.rmtree(place)


def expected(points: Points, reader: Reader, of: Callable[[Feature], Capability]) -> dict[str, list[Point]]:
    """What a tracker should have, by the names under which it stores it."""
    stored: dict[str, list[Point]] = {}
    for tag, recorded in points.items():
        kept: list[Point] = []
        for point in recorded:
            value = readback.double(point.value)
            if of(Feature.NON_FINITE).level is Level.NOT_STORED and not math.isfinite(value):
                continue
            if of(Feature.NEGATIVE).level is Level.NOT_STORED and point.step < 0:
                continue
            if of(Feature.REPEATED).level is Level.NOT_STORED and point.step in {p.step for p in kept}:
                continue
            kept.append(point._replace(value=bits(reader.value(value))))
        if kept:
            name = reader.name(tag)
            assert name not in stored, f"{tag!r} is stored under the name of another series, {name!r}"
            stored[name] = kept
    return stored


@pytest.mark.parametrize("tracker", TRACKERS)
def test_points(recorded: Recorded, tracker: str) -> None:
    reader = READERS[tracker]
    declaration = discovery.declaration(tracker)
    assert declaration is not None
    stored = reader.read(recorded.place)
    wanted = expected(recorded.journal, reader, declaration.of)
    ours = {name: points for name, points in stored.points.items() if name in wanted}
    assert sorted(ours) == sorted(wanted)
    for name, points in wanted.items():
        found = ours[name]
        if not reader.ordered:
            points, found = sorted(points), sorted(found)
        assert [(p.step, p.value) for p in found] == [(p.step, p.value) for p in points], name
        assert all(abs(a.time_ns - b.time_ns) <= reader.precision for a, b in zip(found, points, strict=True))
    if not STORAGE[tracker].quantiles:
        assert stored.points.keys() == wanted.keys()

    receipt = recorded.said["trackers"][tracker]
    assert receipt["state"] == "finished"
    assert receipt["pending"] == 0
    assert receipt["delivered"] == sum(map(len, wanted.values()))
    assert receipt["delivered"] + sum(receipt["dropped"].values()) == recorded.said["recorded"]


_OF_NAMES_AND_CONFIGS = re.compile("config|param|the name has other data")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_texts_and_media(recorded: Recorded, tracker: str) -> None:
    """Name, step and content of each: as recorded, or as the tracker declares and its receipt says."""
    storage = STORAGE[tracker]
    declaration = discovery.declaration(tracker)
    assert declaration is not None
    assert set(storage.changed) == {k for k in MediaKind if declaration.of(k).level is Level.CHANGED}
    wanted = media.expected(storage, declaration, recorded.texts, recorded.media, set(recorded.journal))
    found = READERS[tracker].read(recorded.place).media
    stored = media.without_times(found)
    missing, others = media.without_times(wanted) - stored, stored - media.without_times(wanted)
    assert not missing, sorted((entry[:3] for entry in missing), key=str)
    assert not others, sorted((entry[:3] for entry in others), key=str)
    precision = min(READERS[tracker].precision, 1_000_000)
    pairs = zip(media.times(found, storage.timed), media.times(wanted, storage.timed), strict=True)
    assert all(a == b and abs(their - our) <= precision for (a, their), (b, our) in pairs)

    receipt = recorded.said["trackers"][tracker]
    said = receipt["stored_altered"]
    of_media = {text: count for text, count in said.items() if not _OF_NAMES_AND_CONFIGS.search(text)}
    assert of_media == media.told(storage, recorded.media)
    assert receipt["not_stored"] == {}


@pytest.mark.parametrize("tracker", [name for name in TRACKERS if STORAGE[name].quantiles])
def test_quantiles(recorded: Recorded, tracker: str) -> None:
    """A histogram is series too, of names that no other series has."""
    reader = READERS[tracker]
    stored = reader.read(recorded.place).points
    wanted: dict[str, list[tuple[int, float]]] = {}
    for each in recorded.media:
        if each.kind is MediaKind.HISTOGRAM:
            for name, value in media.quantiles(each).items():
                wanted.setdefault(f"{reader.name(each.tag)}/histogram/{name}", []).append((each.step, value))
    for name, points in wanted.items():
        assert [point.step for point in stored[name]] == [step for step, _ in points]
        values = [readback.double(point.value) for point in stored[name]]
        assert values == pytest.approx([value for _, value in points])
    series = expected(recorded.journal, reader, lambda _: exact())
    assert stored.keys() == series.keys() | wanted.keys()


def plain(value: Any) -> Any:
    """A value without what trackers may spell another way: NaN is a text, an int that is a float is one."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return value


@pytest.mark.parametrize("tracker", [name for name in TRACKERS if name != "clearml"])
def test_config(recorded: Recorded, tracker: str) -> None:
    stored = plain(dict(READERS[tracker].read(recorded.place).config))
    wanted = plain(to_jsonable(content.CONFIG))
    if tracker == "swanlab":  # as it declares
        wanted["none"] = {}
    assert {key: stored.get(key) for key in wanted} == wanted


def as_parameters(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(Section and name, text) of ClearML's parameters; the section of what is in no mapping is `General`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from as_parameters(value, f"{prefix}{name}/")
        else:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            yield f"{prefix or 'General/'}{name}", "" if value is None else text


def test_config_of_clearml(recorded: Recorded) -> None:
    """As parameters, which are texts, and whole."""
    from clearml.utilities.config import text_to_config_dict

    stored = READERS["clearml"].read(recorded.place)
    wanted = to_jsonable(content.CONFIG)
    # What reads it makes spaces of tabs, and texts of NaN.
    assert text_to_config_dict(stored.whole_config) == wanted | {"text": "naïve\n        λ", "nan": "nan"}
    parameters = dict(stored.config)
    assert parameters.pop("otel_tracking/status") == "finished"
    assert parameters == dict(as_parameters(wanted))


@pytest.mark.parametrize("tracker", TRACKERS)
def test_status(recorded: Recorded, tracker: str) -> None:
    declaration = discovery.declaration(tracker)
    assert declaration is not None
    if declaration.of(Feature.STATUS).level is not Level.NOT_STORED:
        assert READERS[tracker].read(recorded.place).status in ("finished", "0")


def test_no_file_is_elsewhere(recorded: Recorded) -> None:
    here = {path.name for path in recorded.place.iterdir()}
    assert here <= {"runs", "home", "trackio", "clearml"}
    project = recorded.place / "runs" / content.PROJECT
    assert {path.name for path in project.iterdir()} == {content.RUN_ID}
    runs = {path.name for path in (recorded.place / "runs").iterdir()}
    assert runs <= {content.PROJECT, ".aim", "mlflow.db", "mlartifacts", ".pending"}
