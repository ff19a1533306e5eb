"""A stand-in for W&B's server on loopback: a sweep, its agent, and what the runs of it upload."""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"
API_KEY = "0" * 40
"""The client looks at a key's length only."""


@dataclass(slots=True)
class UploadedRun:
    """What the server knows of a run."""

    id: str
    project: str
    sweep: str | None = None
    begun: bool = False
    """Whether a client has opened it; a sweep's run exists before that."""
    config: dict[str, Any] = field(default_factory=dict)
    """By name `{"value": ...}`, as W&B has it; `_wandb` is the client's own."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """By file name what was streamed: the history is `wandb-history.jsonl`."""
    exit_code: int | None = None
    """None while no client has said that the run is complete."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, in order."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The config without what W&B keeps for itself."""
        return {name: entry["value"] for name, entry in self.config.items() if name != "_wandb"}

    def stream(self, body: Mapping[str, Any]) -> None:
        """Take a request to `file_stream`: lines of files, from an offset on; at last an exit code."""
        for name, part in (body.get("files") or {}).items():
            lines = self.lines.setdefault(name, [])
            start = part["offset"]
            if start > len(lines):
                raise ValueError(f"{name} has {len(lines)} lines, and {start} comes next")
            lines[start : start + len(part["content"])] = part["content"]
        if body.get("complete"):
            self.exit_code = body["exitcode"]


class WandbApi(ThreadingHTTPServer):
    """Answers what wandb's client asks of its server, and gives an agent one run a trial.

    Args:
        trials: The hyperparameters that the sweep tries, in order.
    """

    daemon_threads = True

    def __init__(self, trials: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, UploadedRun] = {}
        self.sweeps: dict[str, Mapping[str, Any]] = {}
        """By id what `wandb.sweep` sent; its `config` is YAML."""
        self.failures: list[str] = []
        """What the server had no answer to."""
        self._sweep_of: dict[str, str] = {}
        self._trials = list(trials)
        self._guard = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends, as wandb's does, resets what it holds open."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        operation = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else query
        with self._guard:
            match name:
                case "ServerFeaturesQuery":
                    return {"serverInfo": {"features": []}}
                case "OrganizationCoreWeaveOrganizationID":
                    return {"entity": {"organization": None}}
                case "Viewer":
                    return {"viewer": _VIEWER}
                case "UpsertSweep":
                    return {"upsertSweep": self._upsert_sweep(variables)}
                case "CreateAgent":
                    return {"createAgent": {"agent": {"id": self._create_agent(variables)}}}
                case "Heartbeat":
                    agent = variables["id"]
                    commands = self._commands(agent, json.loads(variables["runState"]))
                    return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps(commands)}}
                case "RunResumeStatus":
                    return {"model": self._resume_status(variables)}
                case "UpsertBucket":
                    return {"upsertBucket": self._upsert_run(variables)}
                case "CreateRunFiles":
                    files = [{"name": f, "uploadUrl": f"{self.url}/storage/{f}"} for f in variables["files"]]
                    created = {"runID": variables["run"], "uploadHeaders": [], "files": files}
                    return {"createRunFiles": created}
        raise LookupError(f"no such operation: {name}")

    def stream(self, path: str, body: Mapping[str, Any]) -> None:
        """Take what a client sends to a run's `file_stream`."""
        found = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
        if found is None:
            raise LookupError(f"no such path: {path}")
        with self._guard:
            self.runs[found[1]].stream(body)

    def _upsert_sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = variables
        project = _project(variables["projectName"])
        return {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}

    def _create_agent(self, variables: Mapping[str, Any]) -> str:
        self._sweep_of[agent := f"agent{len(self._sweep_of)}"] = variables["sweep"]
        return agent

    def _commands(self, agent: str, running: Mapping[str, bool]) -> list[dict[str, Any]]:
        """One run after the other, and `exit` after the last."""
        if running:
            return []
        if not self._trials:
            return [{"type": "exit"}]
        sweep = self._sweep_of[agent]
        run = UploadedRun(f"trial{len(self.runs)}", self.sweeps[sweep]["projectName"], sweep)
        self.runs[run.id] = run
        args = {name: {"value": value} for name, value in self._trials.pop(0).items()}
        return [{"type": "run", "run_id": run.id, "args": args}]

    def _resume_status(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = run and {
            "id": run.id,
            "name": run.id,
            "summaryMetrics": "{}",
            "displayName": run.id,
            "logLineCount": len(run.lines.get("output.log", [])),
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", [])),
            "historyTail": "[]",
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": {}} if run.begun else {}),
        }
        return {**_project(variables["project"]), "bucket": bucket}

    def _upsert_run(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, UploadedRun(name, variables["project"]))
        run.begun = True
        run.config.update(json.loads(variables.get("config") or "{}"))
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": variables.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": run.sweep,
            "project": _project(run.project),
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
        }
        return {"bucket": bucket, "inserted": inserted}


_VIEWER = {
    "id": "viewer",
    "entity": ENTITY,
    "username": ENTITY,
    "email": "",
    "flags": "{}",
    "teams": {"edges": []},
}


def _project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


class _Handler(BaseHTTPRequestHandler):
    server: WandbApi
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        try:
            body = json.loads(self._read())
            if self.path == "/graphql":
                self._answer(200, {"data": self.server.answer(body["query"], body.get("variables") or {})})
            else:
                self.server.stream(self.path, body)
                self._answer(200, {})
        except ConnectionError:  # who asked has ended meanwhile
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - whatever went wrong is for the test to see
            self.server.failures.append(f"{self.path}: {error!r}")
            self._answer(400, {"errors": [{"message": repr(error)}]})

    def do_PUT(self) -> None:
        """A file of a run, such as its requirements: not what this is about."""
        self._read()
        self._answer(200, {})

    def do_GET(self) -> None:
        self.server.failures.append(f"GET {self.path}")
        self._answer(404, {})

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        return gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body

    def _answer(self, code: int, body: Mapping[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        """Not in the output of tests."""


@contextmanager
def serving(trials: Iterable[Mapping[str, Any]] = ()) -> Iterator[WandbApi]:
    """A server while the block runs; `trials` are those of a sweep."""
    with WandbApi(trials) as api:
        threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield api
        api.shutdown()
