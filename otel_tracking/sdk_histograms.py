"""Data points of the SDK's histograms as distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.metrics.export import Buckets

from otel_tracking.media.histograms import explicit_details, exponential_details


def distribution_details(
    measured: sdk.HistogramDataPoint | sdk.ExponentialHistogramDataPoint, last: sdk.DataPointT | None
) -> dict[str, Any] | None:
    """The details of what a histogram counted since the last data point of its stream.

    Args:
        measured: With its buckets.
        last: The one before it, of a cumulative stream; its extremes can't be taken off.

    Returns:
        What `MediaKind.HISTOGRAM` says; None if nothing finite was counted.
    """
    extremes = (float(measured.min), float(measured.max))
    if not all(map(math.isfinite, extremes)):  # not recorded
        extremes = (math.inf, -math.inf)
    if isinstance(measured, sdk.HistogramDataPoint):
        before = last if isinstance(last, sdk.HistogramDataPoint) else None
        counts = list(measured.bucket_counts)
        total = float(measured.sum)
        if before is not None and before.explicit_bounds == measured.explicit_bounds:
            counts = [now - then for now, then in zip(counts, before.bucket_counts, strict=True)]
            total -= before.sum
        if not any(counts):
            return None
        return explicit_details(counts, measured.explicit_bounds, extremes=extremes, total=total)
    earlier = last if isinstance(last, sdk.ExponentialHistogramDataPoint) else None
    scale = measured.scale if earlier is None else min(measured.scale, earlier.scale)
    zeros, total = measured.zero_count, float(measured.sum)
    negative = _by_index(measured.negative, measured.scale - scale)
    positive = _by_index(measured.positive, measured.scale - scale)
    if earlier is not None:
        zeros -= earlier.zero_count
        total -= earlier.sum
        negative = _less(negative, _by_index(earlier.negative, earlier.scale - scale))
        positive = _less(positive, _by_index(earlier.positive, earlier.scale - scale))
    if not (zeros or negative or positive):
        return None
    return exponential_details(negative, zeros, positive, scale=scale, extremes=extremes, total=total)


def _by_index(buckets: Buckets, shift: int) -> dict[int, float]:
    """Counts that are not 0, of a scale that is lower by `shift`."""
    found: dict[int, float] = {}
    for place, count in enumerate(buckets.bucket_counts):
        if count:
            index = (buckets.offset + place) >> shift
            found[index] = found.get(index, 0) + count
    return found


def _less(counts: Mapping[int, float], earlier: Mapping[int, float]) -> dict[int, float]:
    return {index: left for index, count in counts.items() if (left := count - earlier.get(index, 0))}
