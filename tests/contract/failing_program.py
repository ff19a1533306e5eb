"""A training loop as people write it, with OpenTelemetry's API alone, of which a step fails.

`failing_program.py alone`: `otel-tracking run` records it, and nobody catches the exception.
`failing_program.py tracked`: two runs of a `Tracking`. In the first one the loop catches the exception and
goes on; in the second nobody does, and nobody ends the run.
"""

from __future__ import annotations

import sys
from typing import Final

from opentelemetry import metrics, trace

FAILING: Final = 3
"""The step that does."""
STEPS: Final = 6
BATCH: Final = 32
REASON: Final = "the gradient of 'layer.3' is NaN"
CONFIG: Final = {"lr": 0.5}


def loss_at(step: int) -> float:
    """What the model is worth."""
    return 1 / (step + 1)


def train(*, catch: bool) -> None:
    """All steps, or those up to the one that fails."""
    meter, tracer = metrics.get_meter("train"), trace.get_tracer("train")
    loss, norm = meter.create_gauge("train/loss"), meter.create_gauge("norm")
    samples = meter.create_counter("samples")
    for step in range(STEPS):
        try:
            with tracer.start_as_current_span("train step", attributes={"training.step": step}):
                samples.add(BATCH)
                with tracer.start_as_current_span("forward"):
                    loss.set(loss_at(step))
                with tracer.start_as_current_span("backward"):
                    norm.set(step / 4, {"layer": 3})
                    if step == FAILING:
                        raise FloatingPointError(REASON)
        except FloatingPointError:
            if not catch:
                raise


def main() -> None:
    """As the arguments say."""
    if sys.argv[1:] == ["alone"]:
        train(catch=False)
        return
    import otel_tracking as ot

    tracking = ot.Tracking(log_with="all", project_dir="runs")
    for project in ("caught", "uncaught"):
        tracking.init_trackers(project, config=CONFIG)
        train(catch=project == "caught")
        tracking.end_training()


if __name__ == "__main__":
    main()
