"""What TensorBoard's plugins read beside scalars: texts, hyperparameters, and the layout of charts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_tensor_proto  # type: ignore[import-untyped]

from otel_tracking.config import flatten_config
from otel_tracking.records import RunStatus, Series

CONFIG_TAG = "config"
CHARTS_CATEGORY = "grouped series"


def scalar_metadata(series: Series) -> bytes:
    """The `SummaryMetadata` that shows a series' description and unit; empty if it has neither."""
    unit = f"[{series.unit}]" if series.unit else ""
    about = " ".join(part for part in (series.description, unit) if part)
    if not about:
        return b""
    # Without plugin and class, TensorBoard's fast loader drops what came with the number.
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"),
        data_class=DATA_CLASS_SCALAR,
        summary_description=_utf8(about).decode(),
    )
    serialized: bytes = metadata.SerializeToString()
    return serialized


def text_value(tag: str, text: str) -> Summary.Value:
    """A text as `SummaryWriter.add_text` stores it."""
    return Summary.Value(
        tag=f"{tag}/text_summary",
        metadata=text_metadata.create_summary_metadata(display_name="", description=""),
        tensor=make_tensor_proto([_utf8(text)]),
    )


def config_values(config: Mapping[str, Any], started: float, group: str) -> list[Summary.Value]:
    """Hyperparameters for the HParams tab, and the whole of them as a text.

    Args:
        config: Nested mappings, lists, None and scalars.
        started: Seconds since the epoch.
        group: What runs of one group share; empty for a run on its own.
    """
    start = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=started)
    for name, value in flatten_config(config).items():
        key = _utf8(name).decode()
        while key in start.hparams:
            key += "~2"
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float) and _is_plain(value):
            start.hparams[key].number_value = value
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            start.hparams[key].string_value = _utf8(text).decode()
    listing = json.dumps(config, indent=2, ensure_ascii=False)
    # Four spaces make a code block in Markdown, whatever backticks the values hold.
    block = "\n".join(f"    {line}" for line in listing.splitlines())
    return [
        text_value(CONFIG_TAG, block),
        _hparams_value(
            hparams_metadata.SESSION_START_INFO_TAG,
            plugin_data_pb2.HParamsPluginData(session_start_info=start),
        ),
    ]


def session_end_value(status: RunStatus, ended: float) -> Summary.Value:
    """How the run ended, for the HParams tab; `ended` in seconds since the epoch."""
    end = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if status is RunStatus.FINISHED else api_pb2.STATUS_FAILURE,
        end_time_secs=ended,
    )
    return _hparams_value(
        hparams_metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)
    )


class Charts:
    """The layout of the Custom Scalars tab: one chart with several lines for each group of series.

    Charts that came from elsewhere (`SummaryWriter.add_custom_scalars`, an earlier start of the
    run) are kept, because TensorBoard heeds the last layout of a run alone.

    Attributes:
        due: Whether the layout has changed since it was last stored.
        stored_at: Where in the file that record begins; None before the first.
    """

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, None]] = {}
        self._adopted = layout_pb2.Layout()
        self.due = False
        self.stored_at: int | None = None

    def add(self, grouped: Iterable[tuple[str, str]]) -> None:
        """Take (group, tag) pairs."""
        for group, tag in grouped:
            tags = self._groups.setdefault(_utf8(group).decode(), {})
            # Tags are regular expressions there, matched from a tag's start.
            pattern = f"{re.escape(tag)}$"
            if pattern not in tags:
                tags[pattern] = None
                self.due = self.due or len(tags) > 1

    def adopt(self, value: Summary.Value) -> None:
        """Take over a layout: charts of groups grow on from it, others stay as they are."""
        layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
        self._adopted = layout_pb2.Layout()
        for category in layout.category:
            if category.title != CHARTS_CATEGORY:
                self._adopted.category.append(category)
                continue
            for chart in category.chart:
                known = self._groups.setdefault(chart.title, {})
                self._groups[chart.title] = dict.fromkeys([*chart.multiline.tag, *known])
        self.due = True

    def lost(self) -> None:
        """The layout has to be stored anew."""
        self.stored_at = None
        self.due = bool(self._adopted.category) or any(len(tags) > 1 for tags in self._groups.values())

    def value(self) -> Summary.Value:
        """The layout as it is now."""
        layout = layout_pb2.Layout()
        layout.CopyFrom(self._adopted)
        charts = [
            layout_pb2.Chart(title=group, multiline=layout_pb2.MultilineChartContent(tag=tags))
            for group, tags in self._groups.items()
            if len(tags) > 1
        ]
        if charts:
            layout.category.append(layout_pb2.Category(title=CHARTS_CATEGORY, chart=charts))
        return Summary.Value(
            tag=layout_metadata.CONFIG_SUMMARY_TAG,
            metadata=layout_metadata.create_summary_metadata(),
            tensor=make_tensor_proto(layout.SerializeToString()),
        )


def is_layout(value: Summary.Value) -> bool:
    """Whether a summary holds a layout of charts."""
    return bool(value.tag == layout_metadata.CONFIG_SUMMARY_TAG and value.tensor.string_val)


def _hparams_value(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Summary.Value:
    return Summary.Value(
        tag=tag,
        metadata=hparams_metadata.create_summary_metadata(data),
        tensor=hparams_metadata.NULL_TENSOR,
    )


def _is_plain(number: int | float) -> bool:
    """Whether the HParams tab shows that number: a finite double (others fail its JSON encoder)."""
    try:
        return math.isfinite(number) and float(number) == number
    except OverflowError:
        return False


def _utf8(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form; JSON's escape is readable and loses nothing.
    return text.encode(errors="backslashreplace")
