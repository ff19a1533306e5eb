"""No tracker's escaping makes one name of two, whatever the names."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_tracking.names import NameRule
from otel_tracking.tags import of_kind
from otel_tracking.tracker import Tracker

RULES = {
    "everything": NameRule(),
    "few characters": NameRule(forbidden="^a-z0-9_"),
    "no slash at an edge": NameRule(forbidden="@%", forbidden_parts="^/|/(?=/)|/$"),
    "short": NameRule(forbidden="^a-zA-Z0-9_/", max_length=40),
    "few bytes": NameRule(max_bytes=64),
}
CUT = re.compile(r"_x[0-9a-f]{16}_\Z")
TRACKERS = importlib.metadata.entry_points(group="otel_tracking_trackers")


@pytest.fixture(scope="module", params=[*RULES, *sorted(TRACKERS.names)])
def rule(request: pytest.FixtureRequest) -> NameRule:
    if request.param in RULES:
        return RULES[request.param]
    tracker: type[Tracker] = TRACKERS[request.param].load()
    return tracker.names


# Names near each other in the ways that escaping can confuse: escapes, pieces of one, separators.
tricky = st.from_regex(r"([_x./%~ aAé]|e\u0301|_x|2f|_x2f_|_x_|_x5f_|%2F){0,8}", fullmatch=True)
anything = st.text(st.characters(exclude_categories=()), max_size=80)
names = st.one_of(tricky, anything)


@given(names)
@example("")
@example("_x_")
@example("/_x2f_")
@example("\ud800")
@example("a\x00b\u202ec\n")
def test_a_name_comes_back(rule: NameRule, name: str) -> None:
    escaped = rule.escape(name)
    if not CUT.search(escaped) or CUT.search(name):
        assert rule.unescape(escaped) == name


@given(st.lists(names, min_size=2, max_size=6, unique=True))
@example(["", "_x_"])
@example(["/", "_x2f_"])
@example(["_x5f_x2f_", "_x2f_"])
def test_two_names_stay_two(rule: NameRule, names: list[str]) -> None:
    assert len({rule.escape(name) for name in names}) == len(names)


@given(names)
def test_what_comes_out_is_legal_and_stable(rule: NameRule, name: str) -> None:
    escaped = rule.escape(name)
    assert rule.is_legal(escaped)
    escaped.encode()
    if rule.forbidden:
        assert not re.search(f"[{rule.forbidden}]", escaped)
    if rule.forbidden_parts:
        assert not re.search(rule.forbidden_parts, escaped)
    assert not rule.max_length or len(escaped) <= rule.max_length
    assert not rule.max_bytes or len(escaped.encode()) <= rule.max_bytes
    if not rule.is_legal(name):
        assert escaped != name
    assert rule.escape(name) == escaped


def test_long_names_that_differ_at_the_end_stay_apart(rule: NameRule) -> None:
    stem = "layer/" * 10_000
    assert rule.escape(stem + "a") != rule.escape(stem + "b")


@pytest.mark.parametrize("length", range(25))
def test_a_name_cannot_pose_as_one_that_was_cut(length: int) -> None:
    rule = NameRule(forbidden="/", max_length=40)
    original = "a" * length + "/" * 40  # whose escapes the limit cuts at every place
    cut = rule.escape(original)
    assert CUT.search(cut)
    for posing in (cut, rule.unescape(cut)):
        assert rule.escape(posing) != cut


def test_unescape_takes_any_text() -> None:
    for text in ("_xffffff_", "_x110000_", "_x0123456789abcdef_", "_x_x_"):
        assert NameRule().unescape(text) == text
    assert NameRule().unescape("_x10ffff_") == "\U0010ffff"


kinds = st.sampled_from(["series", "text", "image", "video"])
named_like_kinds = st.lists(st.sampled_from(["a", " (image)", " (series)", "_x20_", " ", "/0", "z" * 480]))


@pytest.fixture(scope="module", params=["aim", "swanlab", "tensorboard"])
def one_kind(request: pytest.FixtureRequest) -> NameRule:
    """The rule of a tracker whose names have one kind of data each."""
    tracker: type[Tracker] = TRACKERS[request.param].load()
    return tracker.names


@given(st.lists(named_like_kinds.map("".join), min_size=1, max_size=5, unique=True), kinds)
@example(["a", "a (series)"], "series")
@example(["a", "a (image)/0"], "image")
def test_a_name_for_a_kind_is_no_other_name(one_kind: NameRule, tags: list[str], kind: str) -> None:
    apart = [of_kind(tag, kind, one_kind) for tag in tags]
    found = [one_kind.escape(tag) for tag in tags] + apart
    found += [f"{name}/0" for name in apart]  # the first of several images
    assert len(set(found)) == len(found)
    assert all(len(f"{name} ({kind}) ({kind})") <= (one_kind.max_length or 10**6) for name in apart)
