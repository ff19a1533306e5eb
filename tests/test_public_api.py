"""The package's root re-exports the public names, and says what each is."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import otel_tracking
from otel_tracking import errors


def test_the_root_only_re_exports() -> None:
    tree = ast.parse(Path(otel_tracking.__file__).read_text())
    for node in tree.body[1:]:
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        assert is_all or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)


def test_all_is_sorted_and_is_what_the_root_has() -> None:
    public = {
        name
        for name, value in vars(otel_tracking).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert list(otel_tracking.__all__) == sorted(otel_tracking.__all__)
    assert set(otel_tracking.__all__) == public | {"__version__"}


def test_what_users_are_promised_is_there() -> None:
    assert {"Receipt", "Tracker", "Tracking", "read_run", "set_step", "step"} <= set(otel_tracking.__all__)


def test_every_error_is_there() -> None:
    raised = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.TrackingError)
    }
    assert raised <= set(otel_tracking.__all__)


@pytest.mark.parametrize("name", [n for n in otel_tracking.__all__ if n != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(otel_tracking, name)
    assert value.__doc__
    assert value.__doc__ != type(value).__doc__
    if not inspect.isclass(value):
        return
    for attribute, member in vars(value).items():
        if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert member.__doc__, f"{name}.{attribute}"


def test_the_version_is_the_installed_one() -> None:
    assert otel_tracking.__version__ == importlib.metadata.version("otel-tracking")
