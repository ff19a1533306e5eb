"""Importing comet_ml without what it does to other packages, and opening experiments.

`import comet_ml` patches other trackers and frameworks, now or when they are imported, and takes the
excepthook. Here it does neither, whatever was imported before; a program that has imported it itself keeps
what it got.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SWITCH: Final = "COMET_DISABLE_AUTO_LOGGING"
_hook = sys.excepthook
_given = os.environ.get(_SWITCH)
if "comet_ml" not in sys.modules and _given is None:
    os.environ[_SWITCH] = "1"
try:
    import comet_ml
finally:
    sys.excepthook = _hook
    if _given is None:
        os.environ.pop(_SWITCH, None)

from comet_ml.config.config_constants import MAXIMAL_KEY_LENGTH  # noqa: E402  # only after the above

from otel_tracking.errors import ConfigurationError, Retry  # noqa: E402
from otel_tracking.names import NameRule  # noqa: E402
from otel_tracking.records import RunInfo  # noqa: E402

NAMES: Final = NameRule(forbidden=r"\x00-\x1f\x7f", max_length=MAXIMAL_KEY_LENGTH)
_NAMES: Final = NameRule(forbidden=r"\x00-\x1f\x7f", max_length=200)
_QUIET: Final[Mapping[str, Any]] = {
    "auto_histogram_activation_logging": False,
    "auto_histogram_gradient_logging": False,
    "auto_histogram_tensorboard_logging": False,
    "auto_histogram_weight_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "auto_param_logging": False,
    "display_summary_level": 0,
    "log_code": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_graph": False,
    "parse_args": False,
}
_OFFLINE: Final = ("0", "false", "no")


def is_offline(options: Mapping[str, Any]) -> bool:
    """Whether nothing is to be sent: the option `online=False`, or COMET_START_ONLINE=0."""
    online = options.get("online")
    if online is None:
        return os.environ.get("COMET_START_ONLINE", "").lower() in _OFFLINE
    return not online


def experiment_key(run: RunInfo) -> str:
    """Of a run, always the same: 40 letters and digits."""
    identity = f"{run.project}/{run.run_id}/{run.rank.rank if run.group else ''}"
    return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:40]


def open_experiment(run: RunInfo) -> tuple[Any, bool]:
    """A new experiment, or an earlier start's if it is online; and whether it is the earlier one.

    Raises:
        ConfigurationError: An argument is wrong, or there is no API key.
        Retry: Comet can't be reached.
    """
    options = dict(run.options)
    offline = is_offline(options)
    options.pop("online", None)
    name, tags = options.pop("name", None), options.pop("tags", None)
    key = options.pop("experiment_key", None) or experiment_key(run)
    arguments = {"project_name": _NAMES.escape(run.project), **_QUIET, **options}
    known = bool(run.state.get("key") == key) and not offline
    try:
        if offline:
            folder = str(options.pop("offline_directory", run.directory / "comet"))
            arguments["offline_directory"] = folder
            experiment = comet_ml.OfflineExperiment(experiment_key=key, **arguments)
        elif not (options.get("api_key") or comet_ml.config.get_api_key(None, comet_ml.get_config())):
            raise ConfigurationError(
                "Comet has no API key: set COMET_API_KEY, or run offline with COMET_START_ONLINE=0 "
                "or init_kwargs={'comet_ml': {'online': False}}"
            )
        elif known:
            arguments.pop("project_name")
            experiment = comet_ml.ExistingExperiment(previous_experiment=key, **arguments)
        else:
            experiment = comet_ml.Experiment(experiment_key=key, **arguments)
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Comet refused its arguments: {error!s:.500}") from error
    if not experiment.alive:
        raise Retry("Comet did not open the experiment; it says why in its log")
    experiment.set_name(str(name or _NAMES.escape(run.name)))
    if labels := [*(tags or ()), *([_NAMES.escape(run.group)] if run.group else [])]:
        experiment.add_tags(labels)
    return experiment, known


def retire(directory: Path, state: Mapping[str, Any]) -> None:
    """Move the archive of an earlier start, which Comet can't go on in, out of the way."""
    if not state.get("archive"):
        return
    archive = Path(state["archive"])
    if archive.exists():
        place = directory / "comet-retired"
        place.mkdir(exist_ok=True)
        number = sum(1 for _ in place.iterdir())
        shutil.move(archive, place / f"{archive.stem}.{number}.zip")
