"""What the contract's program records: points, hostile names, texts, every kind of media, a config."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from PIL import Image

import otel_tracking as ot

PROJECT = "contract"
RUN_ID = "the-run"
SERIES = ("train/loss", "val acc", "a", "a/b", "ünï/κόσμος")
_ODD = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2)
_POINTS = 200
"""Of each series."""


class Optimizer(enum.Enum):
    ADAM = "adam"


@dataclasses.dataclass
class Schedule:
    warmup: int = 100
    milestones: tuple[int, ...] = (1, 2)


CONFIG: dict[str, Any] = {
    "lr": 1e-3,
    "epochs": 3,
    "flag": True,
    "none": None,
    "text": "naïve\n\tλ",
    "long": "x" * 7_000,
    "list": [1, 2.5, None, "three", [4]],
    "nested": {"a": {"b": {"c": 1}}, "empty": {}},
    "nan": math.nan,
    "numpy": np.float32(0.5),
    "array": np.arange(3),
    "path": Path("data/train.csv"),
    "enum": Optimizer.ADAM,
    "schedule": Schedule(),
    "big": 2**60,
}


def hostile_names() -> list[str]:
    """500 names, each once: traversals, separators, controls, scripts that run backwards, long ones."""
    names = [
        "",
        " ",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "//",
        "a//b",
        "a/",
        "/a",
        "a/b/c",
        "a/../a",
        "con",
        "step",
        "time",
        "timestamp",
        "_step",
        "_runtime",
        "__proto__",
        "training/step",
        "a.tsv/b",
        "a\\b",
        "nul\0byte",
        "tab\tname",
        "line\nfeed",
        "\u202ertl\u202c",
        "שלום/עולם",
        "emoji 🚀",
        "e\u0301",
        "é",
        "\ud800",
        "%s%n",
        "${HOME}",
        "`id`",
        "<script>alert(1)</script>",
        "'; drop table metrics; --",
        "x" * 4096,
        "x" * 4095 + "y",
        "д" * 300,
        "Case",
        "case",
        "loss/loss",
        "loss",
        "a~2",
        "trailing.",
        "trailing ",
        "-dash-",
        "=1+1",
        "\ufeffbom",
        "a:b",
        "a|b",
        "a*b?",
        "~user",
        "$money.x",
        "_x2f_",
        "_x_",
        "histogram/mean",
        "histogram/histogram/mean",
        "uneven/p50",
        "a (image)",
        "a (text)",
        "a/image",
        "a/series",
    ]
    chance = random.Random(7)
    alphabet = "abc/._-\\ %~\u00e9\u4e2d\u05d0\U0001f600\x07:|@#[]{}\"'"
    while len(names) < 500:
        name = "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 24)))
        if name not in names and name not in SERIES:
            names.append(name)
    return names


def points() -> list[tuple[str, int, float]]:
    """(name, step, value) of 1,000 points of five series: in no order, with repeated and negative steps."""
    chance = random.Random(3)
    made = []
    for name in SERIES:
        steps = list(range(_POINTS - 20)) + [chance.randrange(-5, _POINTS) for _ in range(20)]
        chance.shuffle(steps)
        for place, step in enumerate(steps):
            odd = _ODD[place % len(_ODD)] if place % 10 == 0 else None
            made.append((name, step, chance.gauss(0, 1) if odd is None else odd))
    chance.shuffle(made)
    return made


def log_points(tracking: ot.Tracking, half: str) -> None:
    """One half of them: single ones, and some rows and nested groups."""
    all_points = points()
    middle = len(all_points) // 2
    for name, step, value in all_points[:middle] if half == "first" else all_points[middle:]:
        tracking.log({name: value}, step=step)
    names = hostile_names()
    for name in names[:250] if half == "first" else names[250:]:
        tracking.log({name: 1.5}, step=7)
    base = 0 if half == "first" else 100
    for step in range(base, base + 50):
        tracking.log(
            {"row/x": step * 1.25, "row/y": step * 2.5, "class": {"cat": 0.5, "dog": step / 7}}, step=step
        )


def log_texts(tracking: ot.Tracking, half: str) -> None:
    """Texts of several scripts, under a name of their own, and one that a series has."""
    step = 3 if half == "first" else 4
    texts = {"sample": f"{half}: naïve λ\nsecond line", "a": f"{half}, of a series' name"}
    tracking.log_text(texts, step=step)


def image(seed: int) -> np.ndarray:
    """(8, 6, 3) pixels."""
    return np.random.default_rng(seed).integers(0, 255, (8, 6, 3), dtype=np.uint8)


def log_media(tracking: ot.Tracking, half: str) -> None:
    """Every kind, under a plain name and one that leads out of any folder, and once under a series' name."""
    seed = 1 if half == "first" else 2
    step = seed * 10
    samples = np.sin(np.arange(800) / (seed + 8)).astype(np.float32)
    frames = np.stack([image(seed + n) for n in range(4)])
    picture = Image.fromarray(image(seed))
    rows = [[seed, "x", None, picture], [2.5, "λ|,\n<b>", True, None]]
    edges = np.array([-1.0, 0.5, 1.0, 10.0]) * seed
    captioned = wandb.Image(picture, caption=f"{half} λ")
    for place in ("", "../../"):
        tracking.log_images({f"{place}image": image(seed)}, step=step)
        tracking.log_images({f"{place}images/two": [image(seed), image(seed + 10)]}, step=step)
        tracking.log_images({f"{place}captioned": captioned}, step=step)
        tracking.log_audio({f"{place}audio": samples}, step=step, sample_rate=8000)
        tracking.log_video({f"{place}video": frames}, step=step)
        tracking.log_histogram({f"{place}histogram": (np.arange(100.0) - 30) ** 3 * seed}, step=step, bins=10)
        tracking.log_histogram({f"{place}uneven": (np.array([3, 0, seed]), edges)}, step=step)
        tracking.log_html({f"{place}html": f"<B>{half} Λ</B>"}, step=step)
        tracking.log_figure({f"{place}figure": picture}, step=step)
        tracking.log_table(f"{place}table", columns=["n", "text", "any", "image"], data=rows, step=step)
        with _folder(half, seed) as folder:
            tracking.log_artifact(folder / "weights.bin", f"{place}artifact", step=step)
            tracking.log_artifact(folder, f"{place}folder", step=step)
    tracking.log_images({"a": image(seed)}, step=step)


@contextlib.contextmanager
def _folder(half: str, seed: int) -> Iterator[Path]:
    """Two files, one of them in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "weights.bin").write_bytes(bytes(range(256)) * seed)
        (folder / "deep").mkdir()
        (folder / "deep" / "naïve λ.txt").write_text(half)
        yield folder
