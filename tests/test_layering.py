"""Imports point one way, the core knows no tracker, and importing it stays light."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import otel_tracking
import otel_tracking_exporters

CORE = Path(otel_tracking.__file__).parent
EXPORTERS = Path(otel_tracking_exporters.__file__).parent

# From the ground up. A module imports only from rows before its own; a package stands for all its
# modules. A new module has to be placed here.
LAYERS = [
    {"attaching", "blank", "errors", "failures", "names", "pace", "reach", "redaction", "settings"},
    {"environment"},
    {"records"},
    {"capabilities", "span_records"},
    {"journal", "processes", "ranks", "tags", "tracker"},
    {"cursor", "dead_letters", "final_error", "open_spans"},
    {
        "discovery",
        "feed",
        "identity",
        "reading",
        "recorded",
        "registry",
        "resource",
        "sidecar",
        "steps",
        "testing",
        "values",
    },
    {"config", "doctor", "giving", "ledger", "log_texts", "retention", "rows", "sdk_run"},
    {"followers", "media"},
    {"distributions", "general_tracker", "sdk_histograms"},
    {"choosing"},
    {"recorder", "request"},
    {"error_text"},
    {"instruments", "logs", "sdk_exporters", "sdk_logs", "session", "spans", "system"},
    {"downstream", "export", "runs", "summary"},
    {"provider", "runner"},
    {"process", "resuming", "sidecar_process"},
    {"launcher", "tracking"},
    {"cli", "integrations"},
]
LEVEL = {module: level for level, row in enumerate(LAYERS) for module in row}

# What only exporters, or only code that is handed a tensor, may import.
SDKS = {
    "accelerate",
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "otel_tracking_exporters",
    "swanlab",
    "tensorboard",
    "torch",
    "trackio",
    "transformers",
    "wandb",
}
HEAVY = (SDKS - {"otel_tracking_exporters"}) | {"google.protobuf", "grpc", "matplotlib", "pandas", "requests"}
HEAVY |= {"opentelemetry.instrumentation"}  # an extra


def module_of(path: Path) -> str:
    """`journal` for journal/writer.py, `errors` for errors.py."""
    return path.relative_to(CORE).with_suffix("").parts[0]


def imports(source: str, package: str) -> Iterator[str]:
    """The full names of the modules that a source imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def sources(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    return set(imports(path.read_text(), ".".join(("otel_tracking", *path.parent.relative_to(CORE).parts))))


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: str(p.relative_to(CORE)))
def test_imports_point_down(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    assert module in LEVEL, f"place {module!r} in LAYERS"
    for name in imported_by(path):
        root, _, rest = name.partition(".")
        if root != "otel_tracking" or not rest:
            continue
        other = rest.split(".")[0]
        if other == module:
            continue
        assert other in LEVEL, f"{path.name} imports the package's root ({name}); import the module"
        assert LEVEL[other] < LEVEL[module], f"{module} imports {other}, which is not below it"


def test_layers_name_only_what_exists() -> None:
    existing = {module_of(path) for path in sources(CORE)} - {"__init__"}
    assert set(LEVEL) == existing


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: str(p.relative_to(CORE)))
def test_the_core_imports_no_tracker_and_no_torch(path: Path) -> None:
    if module_of(path) == "integrations":  # each is for one package, and nothing imports it
        return
    assert not {name.split(".")[0] for name in imported_by(path)} & SDKS


SHARED_BY_TRACKERS = {"_locks", "_servers", "declarations"}


def tracker_of(module: str) -> str:
    """`tensorboard` for tensorboard.py and for its private _tensorboard_file.py."""
    return module.removeprefix("_").split("_")[0]


@pytest.mark.parametrize("path", sources(EXPORTERS), ids=lambda p: p.name)
def test_a_tracker_imports_no_other(path: Path) -> None:
    for name in imports(path.read_text(), "otel_tracking_exporters"):
        package, _, rest = name.partition(".")
        if package == "otel_tracking_exporters" and rest.split(".")[0] not in SHARED_BY_TRACKERS:
            assert tracker_of(rest.split(".")[0]) == tracker_of(path.stem), f"{path.name} imports {name}"


def test_imports_are_seen_wherever_they_are() -> None:
    source = (
        "def f():\n import wandb.sdk as w\n from ..records import Batch\n from . import names\n"
        " importlib.import_module('torch.cuda')"
    )
    assert set(imports(source, "otel_tracking.journal")) == {
        "wandb.sdk",
        "otel_tracking.records.Batch",
        "otel_tracking.journal.names",
        "torch.cuda",
    }


def test_importing_the_core_is_light(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_script("import json, sys, otel_tracking; print(json.dumps(sorted(sys.modules)))")
    loaded = set(json.loads(done.stdout))
    assert "otel_tracking.tracking" in loaded
    assert not loaded & HEAVY
