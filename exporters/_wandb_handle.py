"""The W&B run as users hold it: steps become a field, Accelerate's words work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import wandb

from otel_tracking_exporters._wandb_mapping import STEP


def log_steps_as_field(run: wandb.Run) -> Callable[..., None]:
    """Make `run.log(..., step=n)` store n in the field `STEP`, as this project's own rows do.

    W&B's own step only ever rises, by one a row: a step that users pass would be behind the rows
    already written, and W&B would drop what they logged.

    Returns:
        The run's `log` as it was.
    """
    original: Callable[..., None] = run.log

    @functools.wraps(original)
    def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        original(data if step is None else {STEP: step, **data}, commit=commit)

    run.log = log  # type: ignore[method-assign]  # on this object only: others' runs keep W&B's
    if wandb.run is run:
        wandb.log = log
    return original


def finish_after(run: wandb.Run, first: Callable[[int | None], None]) -> Callable[..., None]:
    """Call something, with the exit code, before the run is finished: by `finish`, or by its `with` block.

    Returns:
        The run's `finish` as it was.
    """
    original: Callable[..., None] = run._finish

    @functools.wraps(original)
    def finish(exit_code: int | None = None) -> None:
        first(exit_code)
        original(exit_code)

    run._finish = finish  # type: ignore[method-assign]  # `with` does not call the public one
    return original


class WandbHandle:
    """Accelerate's words for a W&B run; every other attribute is the run's own.

    What is logged here goes to W&B at once and only there: it is not in the journal, and a run
    that has to be written again after a crash does not have it.
    """

    def __init__(self, run: wandb.Run, escape: Callable[[str], str]) -> None:
        self.run = run
        self._escape = escape

    @property
    def tracker(self) -> wandb.Run:
        """The run, under Accelerate's name for it."""
        return self.run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Add hyperparameters to the run's config."""
        config: Any = self.run.config  # W&B's methods carry no types
        config.update(dict(values), allow_val_change=True)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log numbers, strings or W&B media as one row. `kwargs` are `wandb.Run.log`'s."""
        self.run.log({self._escape(name): value for name, value in values.items()}, step=step, **kwargs)

    def log_images(self, values: Mapping[str, Sequence[Any]], step: int | None = None, **kwargs: Any) -> None:
        """Log lists of images: `wandb.Image`, or anything it can be made from."""
        images = {
            name: [image if isinstance(image, wandb.Image) else wandb.Image(image) for image in batch]
            for name, batch in values.items()
        }
        self.log(images, step=step, **kwargs)

    def log_table(
        self,
        table_name: str,
        columns: list[str | int] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Log a table, of columns and rows or of a pandas DataFrame."""
        table = wandb.Table(columns=columns, data=data, dataframe=dataframe)
        self.log({table_name: table}, step=step, **kwargs)

    def finish(self) -> None:
        """Nothing: `end_training` closes the run, after what is still in the journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)
