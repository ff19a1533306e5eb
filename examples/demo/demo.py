"""`make demo`: trains a digit classifier twice on two ranks, into three trackers, and says what to open."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from otel_tracking.identity import mint
from otel_tracking.runs import find_runs, receipt

HERE = Path(__file__).parent
OUTPUTS = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")

TRACKERS = ("tensorboard", "mlflow", "wandb")
LAUNCHER = ["otel-tracking", "run", "--log-with", ",".join(TRACKERS), "--project-dir", str(OUTPUTS)]
LAUNCHER += ["--project", "digits-otel", "--"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]
RUNS = {
    "OpenTelemetry's API alone": [*LAUNCHER, *TORCHRUN, str(HERE / "train_otel.py")],
    "the facade": [*TORCHRUN, str(HERE / "train_facade.py"), str(OUTPUTS)],
}
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",  # two ranks share the machine
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}
BIN = os.path.relpath(Path(sys.executable).parent)
OPEN = f"""
Open what was recorded:
  {BIN}/tensorboard --logdir {OUTPUTS}
  {BIN}/mlflow ui --backend-store-uri sqlite:///{OUTPUTS}/mlflow.db
  {BIN}/wandb sync {OUTPUTS}/digits-*/*/wandb/offline-run-*    # uploads, so it needs an account
"""


def failure(command: list[str]) -> str | None:
    """Run it; why the demo failed, if it did."""
    run_id = mint()
    code = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT, "OTEL_TRACKING_RUN_ID": run_id}
    ).returncode
    if code:
        return f"it exited with {code}"
    (run,) = find_runs(OUTPUTS, run_id)
    stored = receipt(run)
    if not stored.complete or set(stored.trackers) != set(TRACKERS):
        return f"not every tracker has every point\n{stored}"
    return None


def main() -> int:
    for title, command in RUNS.items():
        print(f"\n== A model instrumented with {title}\n$ {shlex.join(command)}", flush=True)
        if why := failure(command):
            print(f"the demo failed: {why}", file=sys.stderr)
            return 1
    print(OPEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
