"""Loaded by every Python process under `otel-tracking run`, before the program.

Steps aside for a `sitecustomize` of the environment's own, then prepares recording.
"""

import importlib
import os
import sys

_here = os.path.realpath(os.path.dirname(__file__))
_others = [path for path in sys.path if os.path.realpath(path or os.getcwd()) != _here]
_mine, sys.path[:] = sys.path[:], _others
try:
    del sys.modules["sitecustomize"]
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.path[:] = _mine
    sys.modules.setdefault("sitecustomize", sys.modules.get(__name__, sys))

try:
    from otel_tracking.launcher.bootstrap import install
except ImportError as error:
    print(f"otel-tracking: nothing is recorded in {sys.executable}: {error}", file=sys.stderr)
else:
    install()
