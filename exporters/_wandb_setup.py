"""What has to be settled before a W&B run is open: its mode, its arguments, and old folders."""

from __future__ import annotations

import glob
import inspect
import itertools
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from otel_tracking.errors import ConfigurationError
from otel_tracking.names import NameRule
from otel_tracking.records import RunInfo
from otel_tracking_exporters._wandb_file import WandbFile, parse

_logger = logging.getLogger(__name__)

RETIRED = "wandb-retired"
"""Beside `wandb/`, where `wandb sync` does not look: offline folders that were written again."""

FLUSH_INTERVAL = 0.25
"""Seconds after which wandb-core writes what it buffers to the file; its own default is 15."""

_LONGEST_NAME = 128
_PROJECTS = NameRule(forbidden=r"/\\#?%:\x00-\x1f\x7f", max_length=_LONGEST_NAME)
_GROUPS = NameRule(max_length=_LONGEST_NAME)
# Also part of file names and URLs. 12 characters stay free for the rank.
_RUN_IDS = NameRule(forbidden=r"^A-Za-z0-9_.\-", max_length=52)

_ENVIRONMENT = {
    "name": "WANDB_NAME",
    "id": "WANDB_RUN_ID",
    "dir": "WANDB_DIR",
    "group": "WANDB_RUN_GROUP",
    "resume": "WANDB_RESUME",
}


def leave_inherited_service() -> None:
    """Let this process start a W&B service of its own, instead of using one of a parent process.

    A parent that used W&B hands its service on in the environment. There, a run of a process that was
    killed stays open, and its id in use, for as long as the parent lives.
    """
    # The service's version, the process that started it, and where it listens.
    token = re.match(r"[0-9]+-([0-9]+)-", os.environ.get(wandb.env.SERVICE, ""))
    if token and int(token[1]) != os.getpid():
        del os.environ[wandb.env.SERVICE]


def mode_of(options: Mapping[str, Any]) -> str:
    """`online`, `offline`, `shared` or `disabled`: the user's, else what W&B's own settings say."""
    settings = options.get("settings")
    if isinstance(settings, wandb.Settings):
        settings = settings.model_dump(include=settings.model_fields_set & {"mode"})
    mode = options.get("mode") or (settings or {}).get("mode") or wandb.setup().settings.mode
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


def init_arguments(run: RunInfo, mode: str) -> dict[str, Any]:
    """Arguments for `wandb.init`: the user's, then W&B's environment variables, then ours.

    Raises:
        ConfigurationError: `wandb.init` has no such argument.
    """
    known = inspect.signature(wandb.init).parameters
    unknown = [name for name in run.options if name not in known]
    if unknown:
        raise ConfigurationError(
            f"wandb.init has no argument {unknown[0]!r}; init_kwargs['wandb'] takes {', '.join(known)}"
        )
    rank = f"~rank{run.rank.rank}" if run.group else ""
    ours: dict[str, Any] = {
        "project": _PROJECTS.escape(run.project),
        "name": run.name[:_LONGEST_NAME],
        "id": _RUN_IDS.escape(run.run_id) + rank,
        "group": _GROUPS.escape(run.group) if run.group else None,
        "dir": str(run.directory),
        # W&B warns about it offline, where it can't resume.
        "resume": "allow" if mode in ("online", "shared") else None,
    }
    for name, variable in _ENVIRONMENT.items():
        # One id for all ranks would make their runs one.
        if os.environ.get(variable) and not (rank and name == "id"):
            del ours[name]
    if "project" not in run.options and ours["project"] != run.project:
        _logger.warning("W&B does not take the project name %r: it is %r there", run.project, ours["project"])
    return {**ours, **run.options, "settings": _settings(run.options.get("settings"))}


def _settings(given: wandb.Settings | Mapping[str, Any] | None) -> wandb.Settings | dict[str, Any]:
    # The follower's thread must not take over the trainer's stdout and stderr.
    ours: dict[str, Any] = {} if os.environ.get("WANDB_CONSOLE") else {"console": "off"}
    ours["x_transaction_log_flush_interval"] = FLUSH_INTERVAL
    if isinstance(given, wandb.Settings):
        unset = {name: value for name, value in ours.items() if name not in given.model_fields_set}
        return given.model_copy(update=unset)
    return {**ours, **(given or {})}


def require_login(settings: wandb.Settings | Mapping[str, Any]) -> None:
    """Check that W&B has credentials, without asking for them on the terminal.

    Args:
        settings: What `wandb.init` will get; may hold credentials.

    Raises:
        ConfigurationError: There are none, or they can't be right.
    """
    given = settings.model_dump() if isinstance(settings, wandb.Settings) else settings
    if given.get("api_key") or given.get("identity_token_file"):
        return
    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise ConfigurationError(f"W&B can't use its credentials: {error}") from error
    if not known:
        raise ConfigurationError(
            "W&B has no API key. Set WANDB_API_KEY or run `wandb login`; or set WANDB_MODE=offline "
            "(or init_kwargs={'wandb': {'mode': 'offline'}}) and upload later with `wandb sync`."
        )


def base_url(settings: wandb.Settings | Mapping[str, Any]) -> str:
    """Where the server is that `wandb.init` will reach with those settings."""
    given = settings.model_dump() if isinstance(settings, wandb.Settings) else settings
    return str(given.get("base_url") or wandb.setup().settings.base_url)


@contextmanager
def exit_hooks_restored() -> Iterator[None]:
    """Take back `sys.excepthook` and `sys.exit` if W&B replaces them meanwhile.

    It does so when its service starts, to learn the exit code of runs that nobody finishes; ours
    are finished with their status.
    """
    before = sys.excepthook, sys.exit
    try:
        yield
    finally:
        if _is_wandbs(sys.excepthook):
            sys.excepthook = before[0]
        if _is_wandbs(sys.exit):
            sys.exit = before[1]


def _is_wandbs(hook: object) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("wandb.")


def offline_folders(root: Path, run_id: str) -> list[Path]:
    """The folders of offline runs of that id under a directory given to `wandb.init(dir=...)`."""
    pattern = f"offline-run-*/run-{glob.escape(run_id)}.wandb"
    return sorted(path.parent for name in ("wandb", ".wandb") for path in (root / name).glob(pattern))


def retire(folders: Iterable[Path], is_ours: bytes) -> None:
    """Move offline folders to where `wandb sync` does not take them.

    Args:
        folders: `.../wandb/offline-run-...`.
        is_ours: A field that this project's rows have, to tell them from rows logged natively.
    """
    for folder in folders:
        if not (folder.name.startswith("offline-run-") and folder.is_dir()):
            continue
        home = folder.parent.parent / RETIRED
        home.mkdir(exist_ok=True)
        # A folder's name has the second it was made in; a run can be restarted within one.
        names = (f"{folder.name}-{n}" if n else folder.name for n in itertools.count())
        retired = next(home / name for name in names if not (home / name).exists())
        native = _holds_native_data(folder, is_ours)
        folder.rename(retired)
        _logger.log(
            logging.WARNING if native else logging.INFO,
            "W&B can't go on with an offline run: %s is written again from the journal, "
            "the earlier folder is now %s%s",
            folder.name,
            retired,
            " and alone holds what was logged through the native W&B run" if native else "",
        )


def _holds_native_data(folder: Path, is_ours: bytes) -> bool:
    if (folder / "files" / "media").exists():
        return True
    for path in folder.glob("*.wandb"):
        for payload in WandbFile(path).payloads():
            if is_ours not in payload and parse(payload).WhichOneof("record_type") in ("history", "artifact"):
                return True
    return False
