"""The built wheel holds what it should and works with the sources off the path."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("otel_tracking", "exporters", "otel_tracking_hooks.py", "pyproject.toml", "README.md", "LICENSE")


def pip(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = tmp_path_factory.mktemp("sources")  # a build writes beside what it builds
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    built = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(sources))
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def test_the_wheel_installs_two_packages_a_module_and_nothing_else(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in files}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "otel_tracking",
        "otel_tracking_exporters",
        "otel_tracking_hooks.py",
    }
    assert {"otel_tracking/py.typed", "otel_tracking_exporters/py.typed"} <= set(files)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    folders = {"otel_tracking": ROOT / "otel_tracking", "otel_tracking_exporters": ROOT / "exporters"}
    modules = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in folders.items()
        for path in folder.rglob("*.py")
    }
    modules.add("otel_tracking_hooks.py")
    assert modules == {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}


def test_packages_listed_are_the_folders_there_are() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for root in ("otel_tracking", "exporters")
        for path in (ROOT / root).rglob("__init__.py")
    }
    assert set(listed) == {name.replace("exporters", "otel_tracking_exporters") for name in folders}


def test_entry_points_load_from_the_wheel_and_need_no_arguments(
    installed: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    program = """
import importlib.metadata, inspect, json, sys
import otel_tracking, otel_tracking_exporters
found = {}
for entry in importlib.metadata.distribution("otel-tracking").entry_points:
    loaded = entry.load()
    found.setdefault(entry.group, []).append(entry.name)
    if entry.group == "otel_tracking_declarations":  # data
        continue
    inspect.signature(loaded).bind()
    # OpenTelemetry takes no function for an exporter.
    assert inspect.isclass(loaded) or "exporter" not in entry.group and "tracker" not in entry.group, entry
print(json.dumps([found, otel_tracking.__file__, otel_tracking_exporters.__file__]))
"""
    done = run_script(program, env={"PYTHONPATH": str(installed)})
    found, core, exporters = json.loads(done.stdout.splitlines()[-1])
    assert Path(core).is_relative_to(installed)
    assert Path(exporters).is_relative_to(installed)
    trackers = sorted(found["otel_tracking_trackers"])
    assert trackers
    assert sorted(found["opentelemetry_metrics_exporter"]) == trackers
    assert sorted(found["opentelemetry_traces_exporter"]) == trackers
    assert sorted(found["opentelemetry_logs_exporter"]) == trackers
    assert sorted(found["otel_tracking_declarations"]) == trackers
    assert found["opentelemetry_meter_provider"] == ["otel_tracking"]
    assert found["opentelemetry_tracer_provider"] == ["otel_tracking"]
    assert found["opentelemetry_distro"] == found["opentelemetry_pre_instrument"] == ["otel_tracking"]
    assert "opentelemetry_configurator" not in found  # it would be called, or warned of, unasked
    assert found["opentelemetry_logger_provider"] == ["otel_tracking"]


def test_each_tracker_has_a_module_an_extra_and_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["entry-points"]["otel_tracking_trackers"].items():
        module = target.partition(":")[0].removeprefix("otel_tracking_exporters.")
        assert (ROOT / "exporters" / f"{module}.py").is_file()
        assert (ROOT / "tests" / "exporters" / f"test_{name}.py").is_file()
        assert name in project["optional-dependencies"]
        assert name in project["optional-dependencies"]["all"][0]
