"""What a run ran in: code, command, machine, packages. Collected once a run, off the training thread."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from otel_tracking.redaction import redact_arguments, redact_text

NAME: Final = "environment.json"
_GIT_TIMEOUT: Final = 5.0
_MOST_PACKAGES: Final = 2000
_LONGEST_ARGUMENT: Final = 1000
_VARIABLES: Final = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "LOCAL_WORLD_SIZE",
    "MKL_NUM_THREADS",
    "NCCL_DEBUG",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "TOKENIZERS_PARALLELISM",
    "WORLD_SIZE",
)
"""What results may depend on. No other variable is recorded."""


def collect(directory: Path) -> dict[str, Any]:
    """JSON values that say in what a run ran. What can't be found out is left out; nothing is raised.

    Takes up to some seconds, for Git; secrets in the command line and in URLs are redacted.

    Args:
        directory: Where the code is: of its Git repository commit, branch, remote and whether there are
            changes that are not committed.
    """
    found: dict[str, Any] = {
        "argv": [argument[:_LONGEST_ARGUMENT] for argument in redact_arguments(sys.argv)],
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(Exception):  # of any package's metadata
        found["packages"] = _packages()
    if git := _git_facts(directory):
        found["git"] = git
    return found


def note(run: Path) -> None:
    """Write `environment.json` of a run, unless there is one; a full disk is no reason to stop anything.

    Args:
        run: The run's directory. Git is asked about the directory that this process is in.
    """
    path = run / NAME
    if path.exists():
        return
    content = collect(Path.cwd())
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        draft.replace(path)


def read(run: Path) -> dict[str, Any]:
    """What `note` wrote; empty if it has not."""
    try:
        content = json.loads((run / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _packages() -> dict[str, str]:
    """Name and version of what is installed."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and len(found) < _MOST_PACKAGES:
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _git_facts(directory: Path) -> dict[str, Any]:
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    facts: dict[str, Any] = {"commit": commit}
    if branch := _git(directory, "rev-parse", "--abbrev-ref", "HEAD"):
        facts["branch"] = branch
    if remote := _git(directory, "config", "--get", "remote.origin.url"):
        facts["remote"] = redact_text(remote)
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if changes is not None:
        facts["dirty"] = bool(changes)
    return facts


def _git(directory: Path, *arguments: str) -> str | None:
    """What Git says; None if it does not, in time."""
    # A repository's own configuration may name programs to run; none of these commands may run one.
    safe = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat")
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ASKPASS": "true",
        "GIT_EXTERNAL_DIFF": "",
    }
    try:
        done = subprocess.run(
            ["git", "--no-pager", *safe, *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode(errors="replace").strip()[:10_000] if done.returncode == 0 else None
