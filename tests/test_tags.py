"""Tags: what they look like, and that no two series share one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_tracking.records import AttributeValue, Kind, Series
from otel_tracking.tags import TagAssigner, distinct, render


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "accuracy"),
        ({"class": "cat"}, "accuracy/class.cat"),
        ({"fold": 1, "class": "cat"}, "accuracy/class.cat/fold.1"),
        ({"ema": True, "raw": False}, "accuracy/ema.true/raw.false"),
        ({"lr": 0.1}, "accuracy/lr.0.1"),
        ({"file": "a/b.c%d"}, "accuracy/file.a%2Fb%2Ec%25d"),
        ({"data.set/x": "v"}, "accuracy/data%2Eset%2Fx.v"),
        ({"classes": ("a", "b,c", "d.e")}, "accuracy/classes.a,b%2Cc,d%2Ee"),
        ({"shape": (1, 2.5, True)}, "accuracy/shape.1,2.5,true"),
        ({"empty": ""}, "accuracy/empty."),
        ({"one,two": "three,four"}, "accuracy/one,two.three,four"),
    ],
)
def test_render(attributes: dict[str, AttributeValue], expected: str) -> None:
    assert render("accuracy", attributes) == expected


def test_names_stay_as_they_are() -> None:
    assert render("Train/Loss 100%.x", {}) == "Train/Loss 100%.x"


def assign(tags: TagAssigner, series: Series) -> str:
    return tags.assign(series.identity, series.name, series.attributes, series.meter)


def series(
    meter: str = "", name: str = "loss", kind: Kind = Kind.GAUGE, **attributes: AttributeValue
) -> Series:
    return Series("", name, kind, meter=meter, attributes=attributes)


def test_one_series_keeps_its_tag() -> None:
    tags = TagAssigner()
    assert assign(tags, series("train", fold=1)) == "loss/fold.1"
    assert assign(tags, series("train", fold=1)) == "loss/fold.1"


def test_a_second_meter_goes_in_front() -> None:
    tags = TagAssigner()
    assert assign(tags, series("train")) == "loss"
    assert assign(tags, series("eval.v1/x")) == "eval%2Ev1%2Fx/loss"
    assert assign(tags, series("eval.v1/x", kind=Kind.HISTOGRAM)) == "eval%2Ev1%2Fx/loss~2"
    assert assign(tags, series("train", kind=Kind.HISTOGRAM)) == "loss~2"
    assert assign(tags, series("")) == "loss~3"


def test_typed_attributes_are_told_apart() -> None:
    tags = TagAssigner()
    values: list[AttributeValue] = [1, "1", True, "true", 1.0, "1.0", (1,), (True,), ("1",), (1.0,)]
    assert len({assign(tags, series(fold=value)) for value in values}) == len(values)
    assert assign(tags, series(fold=1)) == "loss/fold.1"


def test_a_literal_name_collides_with_a_rendered_one() -> None:
    tags = TagAssigner()
    assert assign(tags, series(name="loss/fold.1")) == "loss/fold.1"
    assert assign(tags, series(fold=1)) == "loss/fold.1~2"
    assert assign(tags, series(name="loss/fold.1~2")) == "loss/fold.1~2~2"


def test_a_resumed_run_keeps_its_tags() -> None:
    before = TagAssigner()
    known = [
        series("train"),
        series("eval"),
        series("train", kind=Kind.COUNTER),
        series(fold=1),
        series(fold="1"),
    ]
    assigned = {s.identity: assign(before, s) for s in known}
    after = TagAssigner()
    for s in known:
        after.restore(assigned[s.identity], s.identity, s.meter)
    new = series("train", kind=Kind.HISTOGRAM)
    assert assign(after, new) == assign(before, new) == "loss~3"
    assert {s.identity: assign(after, s) for s in reversed(known)} == assigned


def test_a_signal_handler_that_assigns_in_mid_assignment_gets_another_tag() -> None:
    tags = TagAssigner()
    inner: list[str] = []

    class Name(str):
        def __hash__(self) -> int:
            if not inner:
                inner.append("")
                inner[0] = tags.assign("handler", "loss", {})
            return str.__hash__(self)

    outer = tags.assign("interrupted", Name("loss"), {})
    assert {outer, inner[0]} == {"loss", "loss~2"}


def test_distinct() -> None:
    assert distinct("a", set()) == "a"
    assert distinct("a", {"a", "a~2"}) == "a~3"


_TEXT = st.text("ab./%,~1", max_size=4)
_SCALARS = st.one_of(
    _TEXT, st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, -0.0, 1.0, 0.5, float("nan")])
)
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=2).map(tuple))
_SERIES = st.builds(
    lambda meter, name, kind, attributes: Series(
        "", name, kind, meter=meter, attributes=dict(sorted(attributes.items()))
    ),
    st.sampled_from(["", "train", "a/b"]),
    _TEXT,
    st.sampled_from([Kind.GAUGE, Kind.COUNTER]),
    st.dictionaries(_TEXT, _VALUES, max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_SERIES, max_size=12))
def test_no_two_series_share_a_tag(drawn: list[Series]) -> None:
    tags = TagAssigner()
    assigned = {s.identity: assign(tags, s) for s in drawn}
    assert len(set(assigned.values())) == len(assigned)
    assert {s.identity: assign(tags, s) for s in reversed(drawn)} == assigned


_OF_ONE_TYPE = st.dictionaries(_TEXT, st.text("ab./%,", max_size=4), max_size=3)


@settings(max_examples=300, deadline=None)
@given(_OF_ONE_TYPE, _OF_ONE_TYPE)
def test_rendering_texts_is_injective(
    one: dict[str, AttributeValue], other: dict[str, AttributeValue]
) -> None:
    assert (render("loss", one) == render("loss", other)) == (one == other)
