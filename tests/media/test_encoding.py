"""What people log as media, as the files that trackers get: decoded again, and compared."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from PIL import Image

from otel_tracking.media.clips import encode_audio, encode_video
from otel_tracking.media.documents import encode_artifact, encode_figure, encode_html
from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable
from otel_tracking.media.histograms import encode_histogram, quantiles
from otel_tracking.media.images import encode_images
from otel_tracking.media.tables import as_csv, encode_table, rows_of
from otel_tracking.records import Media, MediaFile

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def content(file: Encoded) -> bytes:
    return file.source if isinstance(file.source, bytes) else file.source.read_bytes()


def decoded(media: EncodedMedia) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(content(file)))) for file in media.files]


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float64) / 255,
        PIXELS.astype(np.float32) / 255,
        PIXELS.transpose(2, 0, 1),
        torch.tensor(PIXELS.transpose(2, 0, 1).copy()),
        torch.tensor(PIXELS.transpose(2, 0, 1).copy()) / 255.0,
        Image.fromarray(PIXELS),
        [PIXELS],
        PIXELS[None],
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}",
)
def test_forms_of_an_image(value: Any) -> None:
    media = encode_images(value)
    (image,) = decoded(media)
    assert np.array_equal(image, PIXELS)
    assert media.remarks == ()
    assert media.files[0].details == {"width": 7, "height": 5, "channels": 3}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_of_tensors(channels: int) -> None:
    batch = torch.randint(0, 256, (4, channels, 5, 6), dtype=torch.uint8)
    images = decoded(encode_images(batch))
    assert len(images) == 4
    for image, tensor in zip(images, batch, strict=True):
        assert np.array_equal(image.reshape(5, 6, channels), tensor.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F", "HSV"])
def test_modes_of_pil(mode: str) -> None:
    (image,) = decoded(encode_images(Image.fromarray(PIXELS).convert("RGB" if mode == "I;16" else mode)))
    assert image.shape[:2] == (5, 7)


def test_half_precision_and_odd_values() -> None:
    (image,) = decoded(encode_images(torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16)))
    assert (image == 128).all()
    media = encode_images(np.array([[np.nan, -1.0], [2.0, 1.0]]))
    assert decoded(media)[0].tolist() == [[0, 0], [255, 255]]
    assert media.remarks == ("pixels beyond 0 to 1 were cut",)
    assert encode_images(np.array([[300, -1]])).remarks == ("pixels beyond 0 to 255 were cut",)


@pytest.mark.parametrize(
    ("format_", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("GIF", ".gif"), ("WEBP", ".webp")]
)
def test_files_that_every_browser_shows_are_kept(tmp_path: Path, format_: str, suffix: str) -> None:
    path = tmp_path / "given.file"
    Image.fromarray(PIXELS).save(path, format_)
    for value in (path, str(path), path.read_bytes()):
        (file,) = encode_images(value).files
        assert content(file) == path.read_bytes()
        assert file.suffix == suffix


@pytest.mark.parametrize("format_", ["BMP", "TIFF"])
def test_other_files_become_png(tmp_path: Path, format_: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "given", format_)
    media = encode_images(tmp_path / "given")
    assert media.files[0].suffix == ".png"
    assert np.array_equal(decoded(media)[0], PIXELS)


def test_captions_of_other_libraries() -> None:
    import wandb

    (file,) = encode_images([wandb.Image(PIXELS, caption="a caption")]).files
    assert file.caption == "a caption"
    assert np.array_equal(decoded(EncodedMedia(encode_images(PIXELS).kind, (file,)))[0], PIXELS)


@pytest.mark.parametrize(
    ("encode", "value"),
    [
        (encode_images, "missing.png"),
        (encode_images, b"no image"),
        (encode_images, []),
        (encode_images, [np.zeros((2, 2, 7))]),
        (encode_images, np.zeros((0, 3))),
        (encode_images, np.array(["text"])),
        (encode_images, np.zeros((2, 2), complex)),
        (encode_images, object()),
        (encode_images, [PIXELS] * 1001),
        (lambda value: encode_audio(value, 8000), np.zeros((2, 2, 2))),
        (lambda value: encode_audio(value, 8000), b"no sound"),
        (lambda value: encode_audio(value, 0), np.zeros(5)),
        (lambda value: encode_video(value, 4), np.zeros((2, 2))),
        (lambda value: encode_video(value, 4), []),
        (lambda value: encode_video(value, 0), [PIXELS]),
        (lambda value: encode_video(value, 4), [PIXELS, PIXELS[:2]]),
        (encode_histogram, []),
        (encode_histogram, [np.nan]),
        (encode_histogram, "text"),
        (encode_histogram, (np.array([1, -1]), np.array([0, 1, 2]))),
        (encode_histogram, (np.array([1, 1]), np.array([0, 2, 1]))),
        (encode_figure, "text"),
        (encode_html, 5),
        (encode_html, "missing.html"),
        (encode_artifact, "missing"),
        (lambda value: encode_table(["a"], value), [[1, 2]]),
        (lambda value: encode_table(["a"], value), "text"),
        (lambda value: encode_table(["a"], value), [5]),
        (lambda value: encode_table(None, value), {"a": [1], "b": [1, 2]}),
    ],
)
def test_what_is_refused(encode: Callable[[Any], EncodedMedia], value: Any) -> None:
    with pytest.raises(Unencodable):
        encode(value)


def test_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(encode_images(np.zeros((300, 300), np.uint8)).files[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unencodable):
        encode_images(data)


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        (np.array([0.0, 1.0, -1.0]), [[0], [32767], [-32767]]),
        (np.array([[0.0, 0.5], [1.0, -1.0], [0.0, 0.0]]), [[0, 16384], [32767, -32767], [0, 0]]),
        (np.array([[0, 1, 2], [3, 4, 5]], np.int16), [[0, 3], [1, 4], [2, 5]]),
        (np.array([128, 255, 0], np.uint8), [[0], [32512], [-32768]]),
        (torch.tensor([0.0, 1.0]), [[0], [32767]]),
    ],
)
def test_audio(samples: Any, frames: list[list[int]]) -> None:
    (file,) = encode_audio(samples, 8000).files
    with wave.open(io.BytesIO(content(file))) as sound:
        assert (sound.getframerate(), sound.getsampwidth()) == (8000, 2)
        found = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, sound.getnchannels())
    assert found.tolist() == frames


def test_loud_audio_is_cut() -> None:
    assert encode_audio(np.array([2.0]), 8000).remarks == ("samples beyond -1 to 1 were cut",)


@pytest.mark.parametrize(
    "frames",
    [np.stack([PIXELS] * 3), torch.zeros(3, 3, 5, 7), [Image.fromarray(PIXELS)] * 3, np.zeros((3, 5, 7))],
)
def test_videos(frames: Any) -> None:
    (file,) = encode_video(frames, 10).files
    with Image.open(io.BytesIO(content(file))) as image:
        assert image.format == "GIF"
        assert image.size == (7, 5)
    assert file.details == {"width": 7, "height": 5, "frames": 3, "fps": 10}


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_videos_that_are_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"\0\0\0 ftypisom" if suffix == ".mp4" else b"x")
    (file,) = encode_video(path, 4).files
    assert (file.source, file.suffix, file.name) == (path, suffix, path.name)
    assert encode_video(b"\0\0\0 ftypisom", 4).files[0].suffix == ".mp4"


def test_a_histogram() -> None:
    values = np.arange(100.0)
    details = encode_histogram(np.append(values, [np.nan, np.inf]), bins=4).details
    assert details["counts"] == [25.0] * 4
    assert details["edges"] == [0.0, 24.75, 49.5, 74.25, 99.0]
    assert (details["count"], details["sum"], details["min"], details["max"]) == (100, 4950.0, 0.0, 99.0)
    assert details["sum_squares"] == (values**2).sum()
    found = quantiles(details)
    assert found["p50"] == pytest.approx(49.5)
    assert found["mean"] == 49.5
    assert encode_histogram(np.array([np.nan, 1.0])).remarks == (
        "NaN and infinities left out of a histogram",
    )


def test_a_histogram_that_is_counted() -> None:
    details = encode_histogram((np.array([1, 3]), np.array([0.0, 1.0, 3.0]))).details
    assert (details["counts"], details["edges"], details["count"], details["sum"]) == (
        [1.0, 3.0],
        [0.0, 1.0, 3.0],
        4.0,
        0.5 + 3 * 2.0,
    )


def stored(media: EncodedMedia, place: Path) -> Media:
    """As a tracker gets it."""
    files = []
    for number, file in enumerate(media.files):
        path = place / f"{number}{file.suffix}"
        path.write_bytes(content(file))
        files.append(
            MediaFile(path, f"hash{number}", 0, file.name, file.media_type, file.caption, file.details)
        )
    return Media(media.kind, "t", files, media.details, 0, 0, 0)


def test_tables(tmp_path: Path) -> None:
    rows = [[1, 2.5, "x|,\n", None, True, np.float32(0.5), [1, 2], Image.fromarray(PIXELS)]]
    media = stored(encode_table(list("abcdefgh"), rows), tmp_path)
    assert media.details == {"columns": list("abcdefgh"), "rows": 1}
    (row,) = rows_of(media)
    assert row[:-1] == [1, 2.5, "x|,\n", None, True, 0.5, [1, 2]]
    assert np.array_equal(np.asarray(Image.open(row[-1].path)), PIXELS)
    assert (
        as_csv(media, {"hash1": "cat.png"}) == 'a,b,c,d,e,f,g,h\n1,2.5,"x|,\n",,True,0.5,"[1, 2]",cat.png\n'
    )


@pytest.mark.parametrize(
    "table",
    [
        (None, {"a": [1, 2], "b": ["x", "y"]}, None),
        (["a", "b"], [[1, "x"], [2, "y"]], None),
        (["a", "b"], ((1, "x"), (2, "y")), None),
        (None, None, pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})),
        (None, pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), None),
    ],
)
def test_forms_of_a_table(tmp_path: Path, table: tuple[Any, Any, Any]) -> None:
    media = stored(encode_table(*table), tmp_path)
    assert media.details["columns"] == ["a", "b"]
    assert rows_of(media) == [[1, "x"], [2, "y"]]


def test_an_array_as_a_table(tmp_path: Path) -> None:
    media = stored(encode_table(None, np.arange(4).reshape(2, 2)), tmp_path)
    assert (media.details["columns"], rows_of(media)) == (["0", "1"], [[0, 1], [2, 3]])


def test_figures() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    for value in (figure, axes):
        (file,) = encode_figure(value).files
        assert content(file).startswith(b"\x89PNG")
    plt.close(figure)

    class Plotly:
        def to_html(self, include_plotlyjs: str) -> str:
            return f"<script>{include_plotlyjs}</script>"

        def to_json(self) -> str:
            return "{}"

    (file,) = encode_figure(Plotly()).files
    assert (content(file), file.media_type) == (b"<script>cdn</script>", "text/html")


def test_html(tmp_path: Path) -> None:
    assert content(encode_html("<b>λ</b>").files[0]) == "<b>λ</b>".encode()
    (tmp_path / "page.html").write_text("<i>x</i>")
    assert content(encode_html(str(tmp_path / "page.html")).files[0]) == b"<i>x</i>"


def test_artifacts(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a.bin").write_bytes(b"a")
    (folder / "sub" / "b.json").write_text(json.dumps({}))
    (folder / "link").symlink_to(folder / "a.bin")
    media = encode_artifact(folder)
    assert {file.name: content(file) for file in media.files} == {
        "a.bin": b"a",
        "sub/b.json": b"{}",
        "link": b"a",
    }
    (file,) = encode_artifact(folder / "a.bin").files
    assert file.name == "a.bin"
    with pytest.raises(Unencodable):
        encode_artifact(folder / "empty")


@pytest.mark.parametrize(
    ("shape", "images", "of_tensors"),
    [
        ((16, 28, 30), 16, 16),
        ((2, 28, 30), 2, 2),
        ((5, 1, 30), 5, 5),
        ((1, 28, 30), 1, 1),
        ((3, 28, 30), 1, 1),
        ((4, 28, 30), 1, 1),
        ((28, 30, 3), 1, 1),
        ((16, 28, 4), 1, 1),
        ((3, 1, 28, 30), 3, 3),
        ((28, 30, 1), 1, 1),
    ],
)
def test_arrays_of_several_dimensions(shape: tuple[int, ...], images: int, of_tensors: int) -> None:
    values = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    assert len(encode_images(values).files) == images
    assert len(encode_images(torch.from_numpy(values)).files) == of_tensors


def test_a_batch_of_grey_images() -> None:
    batch = np.arange(16 * 28 * 30, dtype=np.uint8).reshape(16, 28, 30)
    for given in (batch, torch.from_numpy(batch)):
        for image, wanted in zip(decoded(encode_images(given)), batch, strict=True):
            assert np.array_equal(image, wanted)


def samples_of(media: EncodedMedia) -> list[int]:
    with wave.open(io.BytesIO(content(media.files[0]))) as file:
        return [int(each) for each in np.frombuffer(file.readframes(file.getnframes()), "<i2")]


def test_integers_of_64_bits_are_samples_of_16() -> None:
    assert samples_of(encode_audio([0, 1000, -1000, 30000], 8000)) == [0, 1000, -1000, 30000]
    assert samples_of(encode_audio([-32768, 32767], 8000)) == [-32768, 32767]
    assert encode_audio([0, 0], 8000).remarks == ()
    for beyond in (40_000, 32_768, -32_769):
        with pytest.raises(Unencodable, match="say no range"):
            encode_audio([0, beyond], 8000)
    quiet = encode_audio(np.array([0, 1000, -1000, 30000], dtype=np.int32), 8000)
    assert quiet.remarks == ("samples so close to 0 became silence in 16 bits",)


def test_a_cell_that_looks_like_a_file_is_none(tmp_path: Path) -> None:
    rows = [[{"_file": 5}, {"_file": 0}], [Image.fromarray(PIXELS), {"_file": "x", "value": 1}]]
    first, second = rows_of(stored(encode_table(["a", "b"], rows), tmp_path))
    assert first == [{"_file": 5}, {"_file": 0}]
    assert second[0].name == ""
    assert second[1] == {"_file": "x", "value": 1}


def test_an_index_becomes_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"loss": [0.5, 0.25]}, index=pd.Index(["bert", "gpt"], name="model"))
    media = stored(encode_table(None, None, frame), tmp_path)
    assert media.details["columns"] == ["model", "loss"]
    assert rows_of(media) == [["bert", 0.5], ["gpt", 0.25]]


@pytest.mark.parametrize(
    ("frame", "columns", "first"),
    [
        (pd.DataFrame({"loss": [1, 2]}), ["loss"], [1]),
        (pd.DataFrame({"loss": [1, 2, 3]})[1:], ["index", "loss"], [1, 2]),
        (pd.DataFrame({"loss": [1]}, index=pd.RangeIndex(1, name="step")), ["step", "loss"], [0, 1]),
        (
            pd.DataFrame({"model": ["bert"]}).set_index("model", drop=False),
            ["model~2", "model"],
            ["bert"] * 2,
        ),
        (pd.DataFrame({"index": [1]}, index=["bert"]), ["index~2", "index"], ["bert", 1]),
        (
            pd.DataFrame(
                {"loss": [1]}, index=pd.MultiIndex.from_tuples([("bert", 7)], names=["model", None])
            ),
            ["model", "level_1", "loss"],
            ["bert", 7, 1],
        ),
    ],
)
def test_indexes(tmp_path: Path, frame: pd.DataFrame, columns: list[str], first: list[Any]) -> None:
    media = stored(encode_table(None, None, frame), tmp_path)
    assert media.details["columns"] == columns
    assert rows_of(media)[0] == first


def test_tables_from_before_mappings_were_told_from_files(tmp_path: Path) -> None:
    """There a cell `{"_file": n}` was a file, or a mapping of the user's."""
    media = stored(encode_table(["a"], [[Image.fromarray(PIXELS)]]), tmp_path)
    theirs = [{"_file": 0}, {"_file": 5}, {"_file": "x"}, {"_file": True}, {"_file": 1, "value": 2}]
    media.files[0].path.write_text(json.dumps([[{"_file": 1}], *([cell] for cell in theirs)]))
    (file,), *others = rows_of(media)
    assert file is media.files[1]
    assert others == [[cell] for cell in theirs]


def test_boxes_and_masks_are_kept() -> None:
    mask = np.arange(35, dtype=np.int64).reshape(PIXELS.shape[:2])
    box = {"position": {"minX": np.float32(0.5), "maxX": 1, "minY": 0, "maxY": 1}, "class_id": 3}
    image = wandb.Image(
        PIXELS,
        boxes={"found": {"box_data": [box], "class_labels": {3: "cat"}}},
        masks={"seen": {"mask_data": mask, "class_labels": {0: "sky"}}},
    )
    (file,) = encode_images(image).files
    assert file.details["boxes"] == {
        "found": {
            "box_data": [{**box, "position": {"minX": 0.5, "maxX": 1, "minY": 0, "maxY": 1}}],
            "class_labels": [[3, "cat"]],
        }
    }
    assert file.details["masks"] == {"seen": {"class_labels": [[0, "sky"]]}}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.masks["seen"]))), mask)
    assert json.loads(json.dumps(file.details)) == file.details
