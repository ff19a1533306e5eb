"""Histograms: of values, or counted already."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from otel_tracking.media.arrays import to_array
from otel_tracking.media.encoded import EncodedMedia, Unencodable
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaKind

_MOST_BINS: Final = 512
_MOST_EXPONENT: Final = 1024
"""2 to this is more than a double holds."""
_RELATIVE_WIDTH: Final = 2.0**-20
"""Half of the bin of values that are all one."""


def encode_histogram(value: Any, bins: int = 64) -> EncodedMedia:
    """Values of any shape; or counts and edges, as `numpy.histogram` returns them.

    NaN and infinities are left out, and counted.

    Args:
        value: An array, tensor or list of numbers; or a tuple of n counts and n + 1 edges.
        bins: How many of equal width.

    Raises:
        Unencodable: It holds no finite number.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or not 0 < bins <= _MOST_BINS:
        raise Unencodable(f"bins are 1 to {_MOST_BINS}, not {bins!r:.40}")
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) == 1 and np.ndim(value[1]) == 1:
        counts, edges = to_array(value[0]), to_array(value[1])
        if len(edges) == len(counts) + 1:
            return _counted(counts.astype(np.float64), edges.astype(np.float64))
    if hasattr(value, "histogram") and hasattr(value, "bins"):  # a `wandb.Histogram`
        return _counted(np.asarray(value.histogram, np.float64), np.asarray(value.bins, np.float64))
    values = to_array(value).astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise Unencodable("there is no finite number in it")
    counts, edges = np.histogram(finite, bins=bins)
    details = {
        "counts": counts.astype(float).tolist(),
        "edges": edges.tolist(),
        "count": len(finite),
        "sum": float(finite.sum()),
        "sum_squares": float((finite**2).sum()),
        "min": float(finite.min()),
        "max": float(finite.max()),
    }
    left_out = len(values) - len(finite)
    remarks = ("NaN and infinities left out of a histogram",) if left_out else ()
    return EncodedMedia(MediaKind.HISTOGRAM, (), details, remarks)


def _counted(counts: Any, edges: Any) -> EncodedMedia:
    if not len(counts) or len(counts) > _MOST_BINS:
        raise Unencodable(f"a histogram has 1 to {_MOST_BINS} bins, not {len(counts)}")
    if not (np.isfinite(counts).all() and np.isfinite(edges).all() and (counts >= 0).all()):
        raise Unencodable("counts and edges of a histogram are finite, and counts not negative")
    if not (np.diff(edges) > 0).all():
        raise Unencodable("edges of a histogram rise")
    middles = (edges[1:] + edges[:-1]) / 2
    details = {
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "count": float(counts.sum()),
        "sum": float((counts * middles).sum()),
        "sum_squares": float((counts * middles**2).sum()),
        "min": float(edges[0]),
        "max": float(edges[-1]),
    }
    return EncodedMedia(MediaKind.HISTOGRAM, (), details)


def exponential_details(
    negative: Mapping[int, float],
    zeros: float,
    positive: Mapping[int, float],
    *,
    scale: int,
    extremes: tuple[float, float],
    total: float,
) -> dict[str, Any]:
    """The details of a histogram whose buckets are OpenTelemetry's exponential ones.

    Neighbours are joined until no more than `_MOST_BINS` are left. Empty buckets in between stay.

    Args:
        negative: Counts by index: n values have magnitudes from b**index to b**(index + 1), b = 2**2**-scale.
        zeros: How many are 0.
        positive: As `negative`.
        scale: As above.
        extremes: Smallest and largest value.
        total: The sum of all.

    Returns:
        What `MediaKind.HISTOGRAM` says; the sum of squares is that of the middles of the buckets.
    """
    while _span(negative) + _span(positive) >= _MOST_BINS:
        negative, positive, scale = _halved(negative), _halved(positive), scale - 1
    counts, edges = _side(negative, scale)
    counts, edges = counts[::-1], [-edge for edge in reversed(edges)]
    above, above_edges = _side(positive, scale)
    if negative and positive:
        counts, edges = [*counts, zeros, *above], [*edges, *above_edges]
    elif zeros:
        counts, edges = [*counts, zeros, *above], [*edges, 0.0, *above_edges]
    else:
        counts, edges = counts + above, edges + above_edges
    return _details(counts, edges, extremes, total)


def _span(buckets: Mapping[int, float]) -> int:
    return max(buckets) - min(buckets) + 1 if buckets else 0


def _halved(buckets: Mapping[int, float]) -> dict[int, float]:
    halved: dict[int, float] = {}
    for index, count in buckets.items():
        halved[index >> 1] = halved.get(index >> 1, 0) + count
    return halved


def _side(buckets: Mapping[int, float], scale: int) -> tuple[list[float], list[float]]:
    """Counts and edges of magnitudes."""
    if not buckets:
        return [], []
    low, high = min(buckets), max(buckets)
    edges = [_bound(index, scale) for index in range(low, high + 2)]
    return [buckets.get(index, 0) for index in range(low, high + 1)], edges


def _bound(index: int, scale: int) -> float:
    exponent = math.ldexp(index, -scale)
    return 2.0**exponent if exponent < _MOST_EXPONENT else math.inf


def explicit_details(
    counts: Sequence[float], bounds: Sequence[float], *, extremes: tuple[float, float], total: float
) -> dict[str, Any]:
    """The details of a histogram of buckets between bounds, the first and the last one being open.

    Args:
        counts: Of n + 1 buckets, not all 0.
        bounds: n of them, rising.
        extremes: Smallest and largest value; (inf, -inf) where they are not known: what open buckets hold
            counts to their neighbours then.
        total: The sum of all.
    """
    filled = [place for place, count in enumerate(counts) if count]
    first, last = filled[0], filled[-1]
    edges = [-math.inf, *bounds, math.inf][first : last + 2]
    return _details(list(counts[first : last + 1]), edges, extremes, total)


def _details(
    counts: list[float], edges: list[float], extremes: tuple[float, float], total: float
) -> dict[str, Any]:
    """Outer edges lie where the values end, not where their buckets do."""
    count = sum(counts)
    smallest, largest = extremes
    if smallest > largest:  # not known
        finite = [edge for edge in edges if math.isfinite(edge)] or [total / count]
        smallest, largest = finite[0], finite[-1]
    if smallest == largest:
        half, most = max(0.5, abs(smallest) * _RELATIVE_WIDTH), sys.float_info.max
        counts, edges = [count], [max(smallest - half, -most), min(smallest + half, most)]
    else:
        counts, edges = _rising(counts, [smallest, *edges[1:-1], largest])
    middles = np.asarray(edges[1:]) / 2 + np.asarray(edges[:-1]) / 2
    filled = np.asarray(counts) > 0
    with np.errstate(over="ignore"):
        squares = float((np.asarray(counts)[filled] * middles[filled] ** 2).sum())
    return {
        "counts": [float(number) for number in counts],
        "edges": edges,
        "count": float(count),
        "sum": float(total),
        "sum_squares": min(squares, sys.float_info.max),
        "min": float(smallest),
        "max": float(largest),
    }


def _rising(counts: list[float], edges: list[float]) -> tuple[list[float], list[float]]:
    """The bins without those of no width and those beyond the outer edges: neighbours get their counts."""
    kept, rising = [0.0], [edges[0]]
    for number, edge in zip(counts, edges[1:], strict=True):
        kept[-1] += number
        if rising[-1] < edge < edges[-1]:
            rising.append(edge)
            kept.append(0.0)
    return kept, [*rising, edges[-1]]


QUANTILES: Final = ("min", "max", "p05", "p25", "p50", "p75", "p95", "mean")
QUANTILE_PARTS: Final = rf"/(?=histogram/(?:{'|'.join(QUANTILES)})\Z)"
"""Not allowed where quantiles are series (`NameRule.forbidden_parts`): no other series has one's name."""
_LONGEST_PART: Final = max(len(f"/histogram/{name}") for name in QUANTILES)


def quantile_series(media: Media, names: NameRule) -> dict[str, float]:
    """Quantiles by the names that they have as series: `<name>/histogram/mean`.

    Args:
        media: A histogram.
        names: The tracker's rule; it forbids `QUANTILE_PARTS`.
    """
    if names.max_length:
        names = replace(names, max_length=names.max_length - _LONGEST_PART)
    stem = names.escape(media.tag)
    return {f"{stem}/histogram/{name}": value for name, value in quantiles(media.details).items()}


def quantiles(details: Any) -> dict[str, float]:
    """For trackers that have no histograms: what numbers say of one, by name."""
    counts, edges = np.asarray(details["counts"], float), np.asarray(details["edges"], float)
    reached = np.concatenate([[0.0], np.cumsum(counts)])
    total = reached[-1]
    found = {"min": float(details["min"]), "max": float(details["max"])}
    if total > 0:
        for name, share in (("p05", 0.05), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p95", 0.95)):
            found[name] = float(np.interp(share * total, reached, edges))
        found["mean"] = float(details["sum"]) / float(details["count"])
    return found


def as_json(details: Any) -> str:
    """For trackers that have files only."""
    return json.dumps(dict(details))
