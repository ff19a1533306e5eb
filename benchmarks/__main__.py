"""`python -m benchmarks [--quick] [NAME ...]`: prints what recording costs, beside its peers.

A target that is missed is printed, and changes no exit code: a machine that is busy with something
else is no failure.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from importlib.metadata import version

from benchmarks.measuring import in_own_process, measure_topic

BENCHMARKS = ("gauge", "log", "spans", "delivered", "pipelines", "memory", "tail", "reading")
_PACKAGES = ("opentelemetry-sdk", "tensorboard", "torch", "wandb", "accelerate", "numpy")
_QUIET_AND_OFFLINE = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}


def main() -> None:
    """Run the benchmarks that the command line names, each in a process and a directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="too small to mean much, but it all runs")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    for name in [name for name in os.environ if name.startswith(("OTEL_", "WANDB_"))]:
        del os.environ[name]
    os.environ.update(_QUIET_AND_OFFLINE)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", end=" ")
    print(", ".join(f"{package} {version(package)}" for package in _PACKAGES))
    for name in arguments.names or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="otel-tracking-bench-") as directory:
            for table in in_own_process(measure_topic, name, directory, quick=arguments.quick):
                print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
