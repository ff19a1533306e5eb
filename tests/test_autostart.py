"""Recording without a change to the program: by the launcher's `sitecustomize` or by variables."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import otel_tracking
from otel_tracking.reading import RunData, read_run

SITE = str(Path(otel_tracking.__file__).parent / "launcher" / "site")
RunScript = Callable[..., CompletedProcess[str]]

RECORD = """
from opentelemetry import metrics
metrics.get_meter("train").create_gauge("loss").set(0.5, {"training.step": 3})
"""
SITE_ENV = {"PYTHONPATH": SITE, "OTEL_TRACKING_RUN_ID": "r"}
BOTH = {"OTEL_PYTHON_METER_PROVIDER": "otel_tracking", "OTEL_PYTHON_TRACER_PROVIDER": "otel_tracking"}


def recorded() -> RunData:
    (description,) = Path("outputs").glob("*/*/run.json")
    return read_run(description.parent)


@pytest.mark.parametrize(
    "first_import",
    [
        "import opentelemetry.metrics",
        "from opentelemetry import trace",
        "from opentelemetry.sdk.metrics import MeterProvider",
        "import opentelemetry.sdk.trace.export",
        "import opentelemetry.sdk.resources",
        "from opentelemetry.sdk._configuration import _OTelSDKConfigurator",
        "from opentelemetry import baggage, context, propagate",
        "import opentelemetry",
        "import opentelemetry.sdk",
        "import otel_tracking",
        "import otel_tracking.steps",
        "import importlib; importlib.import_module('opentelemetry.trace')",
    ],
)
def test_whatever_is_imported_first(run_script: RunScript, first_import: str) -> None:
    done = run_script(f"{first_import}\n{RECORD}", env=SITE_ENV)
    assert (done.stdout, done.stderr) == ("", "")
    assert recorded().of("loss").steps.tolist() == [3]


THREADS = """
import importlib, threading
names = ["opentelemetry.metrics", "opentelemetry.trace", "otel_tracking", "opentelemetry.sdk.metrics"]
start = threading.Barrier(len(names))
def load(name):
    start.wait()
    importlib.import_module(name)
threads = [threading.Thread(target=load, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_that_import_at_once(run_script: RunScript) -> None:
    for _ in range(3):
        assert run_script(THREADS + RECORD, env=SITE_ENV, timeout=30).stderr == ""
    assert recorded().of("loss").steps.tolist() == [3, 3, 3]


def test_an_import_that_is_looking_misses_no_finder(run_script: RunScript) -> None:
    """While it walks along the finders the first module of OpenTelemetry is loaded, as by another thread."""
    source = """
import importlib.machinery, sys
class Meanwhile:
    def find_spec(self, name, path=None, target=None):
        if name == "wave":
            from opentelemetry import metrics
sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), Meanwhile())
sys.modules.pop("wave", None)
import wave
"""
    assert run_script(source + RECORD, env=SITE_ENV).stderr == ""
    assert recorded().of("loss").steps.tolist() == [3]


def test_to_ask_whether_there_is_a_module_loads_nothing(run_script: RunScript) -> None:
    source = "import importlib.util; assert importlib.util.find_spec('opentelemetry.trace') is not None"
    assert run_script(f"{source}\n{RECORD}", env=SITE_ENV).stderr == ""
    assert recorded().of("loss").steps.tolist() == [3]


def test_a_process_without_opentelemetry_loads_nothing(run_script: RunScript) -> None:
    source = """
import sys
print([name for name in sys.modules if name.startswith(("opentelemetry", "otel_tracking"))])
"""
    assert run_script(source, env={**SITE_ENV, **BOTH}).stdout == "[]\n"
    extra = """
import sys
print(sorted({"numpy", "typing", "pathlib", "importlib.metadata"} & set(sys.modules)), len(sys.meta_path))
"""
    bare, ours = (run_script(extra, env=env).stdout.rsplit(maxsplit=1) for env in ({}, SITE_ENV))
    assert ours[0] == bare[0]
    assert int(ours[1]) == int(bare[1]) + 1


def test_the_loader_leaves_no_traces(run_script: RunScript) -> None:
    source = """
import sys, opentelemetry.metrics as metrics
assert "sitecustomize" not in type(metrics.__loader__).__module__
assert metrics.__spec__.loader is metrics.__loader__
(finder,) = [finder for finder in sys.meta_path if type(finder).__module__ == "sitecustomize"]
assert finder.find_spec("opentelemetry.trace") is finder.find_spec("otel_tracking") is None
import inspect, importlib.resources, pkgutil
assert "def get_meter" in inspect.getsource(metrics._internal)
assert metrics.__spec__.has_location and metrics.__path__
"""
    assert run_script(source, env=SITE_ENV).stderr == ""


def test_the_environments_own_sitecustomize_runs(run_script: RunScript, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import sys; sys.path.append('/added/by/it'); marker = 'ran'")
    source = f"""
import sitecustomize, sys
assert sitecustomize.marker == "ran" and sitecustomize.__file__.startswith({str(other)!r})
assert "/added/by/it" in sys.path
{RECORD}"""
    for path in ([SITE, other], [SITE, "", other], [other, SITE, other]):
        env = {**SITE_ENV, "PYTHONPATH": os.pathsep.join(map(str, path))}
        if path[0] == other:  # found first, it hides ours; OpenTelemetry's variables still work
            env |= BOTH
        assert run_script(source, env=env).stderr == ""
    assert recorded().of("loss").steps.tolist() == [3, 3, 3]


def test_a_sitecustomize_that_raises(run_script: RunScript, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("raise ValueError('theirs')")
    env = {**SITE_ENV, "PYTHONPATH": os.pathsep.join((SITE, "other"))}
    done = run_script(RECORD, env=env)
    assert "theirs" in done.stderr
    assert recorded().of("loss").steps.tolist() == [3]


def test_without_another_sitecustomize_ours_is_the_module(run_script: RunScript) -> None:
    source = "import sitecustomize; print(sitecustomize.__file__)"
    found = run_script(source, env=SITE_ENV).stdout.strip()
    assert found.endswith("sitecustomize.py")


@pytest.mark.parametrize("options", ["-S", "-I", "-E", "-s", "-O", "-W error", "-X dev"])
def test_interpreter_options(run_script: RunScript, options: str) -> None:
    packages = sysconfig.get_path("purelib")  # which `-S` leaves out
    source = f"import site; site.addsitedir({packages!r})" + RECORD
    done = run_script(source, env={**SITE_ENV, **BOTH}, launcher=tuple(options.split()))
    assert "otel-tracking" not in done.stderr
    assert "rror" not in done.stderr
    assert recorded().of("loss").steps.tolist() == [3]


@pytest.mark.parametrize("missing", ["otel_tracking", "numpy"])
def test_another_environment_is_one_line(run_script: RunScript, tmp_path: Path, missing: str) -> None:
    """A child process whose interpreter has OpenTelemetry, and not what we need."""
    source = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.modules.pop("numpy", None)
{RECORD}
from opentelemetry import trace
with trace.get_tracer("train").start_as_current_span("step"):
    print("goes on")
"""
    done = run_script(source, env={**SITE_ENV, **BOTH})
    assert done.stdout == "goes on\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("otel-tracking: nothing is recorded in ")
    assert missing in line
    assert not list(tmp_path.rglob("*.segment"))


def test_an_environment_without_opentelemetry(run_script: RunScript) -> None:
    done = run_script("print(1)", env={**SITE_ENV, **BOTH}, launcher=("-S",))
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_children_record_nothing_of_their_own_unless_they_do(run_script: RunScript) -> None:
    source = """
import subprocess, sys
from opentelemetry import metrics
child = "from opentelemetry import metrics; metrics.get_meter('x')"
subprocess.run([sys.executable, "-c", child], check=True)
metrics.get_meter("train").create_gauge("loss").set(0.5, {"training.step": 3})
"""
    assert run_script(source, env=SITE_ENV).stderr == ""
    assert len(recorded()) == 1


# OpenTelemetry's variables alone

SPANS = """
from opentelemetry import trace
with trace.get_tracer("train").start_as_current_span("step", attributes={"training.step": 4}):
    metrics.get_meter("train").create_gauge("inside").set(1.0)
"""


def test_by_the_variables_of_opentelemetry(run_script: RunScript) -> None:
    done = run_script(RECORD + SPANS, env=BOTH)
    assert (done.stdout, done.stderr) == ("", "")
    data = recorded()
    assert data.of("loss").steps.tolist() == [3]
    assert data.of("inside").steps.tolist() == [4]
    assert data.of("time/step").steps.tolist() == [4]
    assert len(data) == 3


def test_by_the_variable_of_metrics_alone(run_script: RunScript) -> None:
    env = {"OTEL_PYTHON_METER_PROVIDER": "otel_tracking"}
    assert run_script(RECORD, env=env).stderr == ""
    assert recorded().of("loss").steps.tolist() == [3]


def test_all_ways_at_once_record_once(run_script: RunScript) -> None:
    source = f"""
import otel_tracking
tracking = otel_tracking.Tracking([], "outputs")
tracking.init_trackers("p")
another = otel_tracking.Tracking([], "outputs")
{RECORD}{SPANS}
tracking.end_training()
"""
    assert run_script(source, env={**SITE_ENV, **BOTH}).stderr == ""
    assert len(recorded()) == 3


SHORT = """
from opentelemetry import metrics
from opentelemetry.metrics import Observation
def observe(options):
    return [Observation(7, {"training.step": 2})]
metrics.get_meter("gpu").create_observable_gauge("memory", [observe])
"""


@pytest.mark.parametrize("how", ["launcher", "variables"])
def test_a_program_of_observables_alone(run_script: RunScript, how: str) -> None:
    # From 3.12 on an exit handler can't start threads, so a program has to run for a second.
    ending = "" if sys.version_info < (3, 12) else "import time; time.sleep(1.5)"
    run_script(SHORT + ending, env=SITE_ENV if how == "launcher" else BOTH)
    assert recorded().of("memory").steps.tolist()[0] == 2


def test_the_last_observation_is_of_the_end(run_script: RunScript) -> None:
    source = f"value = 1{SHORT.replace('Observation(7', 'Observation(value')}{RECORD}value = 5"
    assert run_script(source, env=SITE_ENV).stderr == ""
    assert recorded().of("memory").values.tolist()[-1] == 5.0


def test_meters_are_chosen_by_the_environment(run_script: RunScript) -> None:
    env = {**SITE_ENV, "OTEL_TRACKING_METERS": "val.*,!val.b"}
    source = "\n".join(
        f"metrics.get_meter({name!r}).create_gauge('g').set(1.0)" for name in ("train", "val.a", "val.b")
    )
    run_script(f"from opentelemetry import metrics\n{source}", env=env)
    assert [series.meter for series in recorded().series] == ["val.a"]


# What an import costs


def test_what_importing_pulls_in(run_script: RunScript) -> None:
    source = "import sys, otel_tracking; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(run_script(source).stdout.split())
    assert not loaded & {"typer", "click", "rich", "pandas", "torch", "tensorboard", "wandb", "mlflow"}
    assert not loaded & {"requests", "google.protobuf", "grpc", "otel_tracking_exporters", "multiprocessing"}


def test_the_site_directory_holds_one_module() -> None:
    # It is first on the path of every process, so anything in it would hide a module of somebody's.
    names = {path.name for path in Path(SITE).iterdir()} - {"__pycache__"}
    assert names == {"sitecustomize.py"}


def test_the_bootstrap_parses_by_old_interpreters() -> None:
    source = Path(SITE, "sitecustomize.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
