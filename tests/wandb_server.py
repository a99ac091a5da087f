"""A W&B server on the loopback address: as much of its protocol as the client needs.

It keeps what runs were sent, strictly in order and without mending, so that a line sent twice is
there twice, and it can misbehave as servers and networks do. Point a client to it with
`WANDB_BASE_URL` and any key of 40 characters.
"""

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "somebody"


@dataclass
class SentRun:
    """One run as the server knows it."""

    id: str
    project: str
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    uploads: set[str] = field(default_factory=set)
    exit_code: int | None = None  # None while nobody said that the run is over
    resumes: int = 0  # clients that asked what to go on with
    misplaced: list[tuple[int, int]] = field(default_factory=list)  # offsets: told, and right

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class Server(ThreadingHTTPServer):
    """Keeps `runs` by id.

    trouble: None, or what happens to every request: "hang" (no answer, until the trouble is
    over), "drop" (the connection is closed without one), or the HTTP status of a refusal
    only: the paths that have trouble, as a regular expression; all of them by default
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, SentRun] = {}
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []  # paths, or what GraphQL was asked for, in order
        self.unknown: list[str] = []  # queries that there is no answer for
        self.trouble: str | int | None = None
        self.only = ".*"
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that tests break are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        trouble = self.server.trouble if re.fullmatch(self.server.only, path) else None
        while trouble == "hang" and self.server.trouble == "hang":
            time.sleep(0.02)
        if trouble in ("hang", "drop"):  # whoever hung is gone, or asks again
            self.close_connection = True
        elif isinstance(trouble, int):
            self._json({"errors": [{"message": "no"}], "error": "no"}, trouble)
        elif path == "/graphql":
            self._graphql(json.loads(body))
        elif match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            with self.server.lock:
                self._file_stream(match[3], json.loads(body))
        elif match := re.fullmatch(r"/upload/([^/]+)/(.+)", path):
            self.server.runs[match[1]].uploads.add(match[2])
            self._json({})
        else:
            self.server.unknown.append(f"{self.command} {path}")
            self._json({"error": "no such route"}, 404)

    def _graphql(self, asked: dict[str, Any]) -> None:
        query, given = asked["query"], asked.get("variables") or {}
        name = _first_field(query)
        self.server.asked[-1] = name
        answer = getattr(self, f"_do_{name}", None)
        if answer is None:
            self.server.unknown.append(query)
            self._json({"data": None, "errors": [{"message": f"no {name} here"}]})
            return
        with self.server.lock:
            self._json({"data": answer(given)})

    def _do_viewer(self, given: dict[str, Any]) -> Any:
        teams: dict[str, Any] = {"edges": []}
        known = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**known, "teams": teams}}

    def _do_model(self, given: dict[str, Any]) -> Any:
        run = self.server.runs.get(given["name"])
        project = given.get("project") or "uncategorized"
        bucket = None
        if run is not None:
            run.resumes += 1
            tail = [json.dumps(row) for row in run.history[-1:]]
            bucket = {
                **_described(run),
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps(tail),
                "eventsTail": "[]",
                "config": json.dumps(run.config),
                "wandbConfig": json.dumps({"t": 1}),
                "tags": run.tags,
                "runInfo": {"args": []},
            }
        entity = {"id": "1", "name": ENTITY}
        return {"model": {"id": "1", "name": project, "entity": entity, "bucket": bucket}}

    def _do_upsertBucket(self, given: dict[str, Any]) -> Any:
        inserted = given["name"] not in self.server.runs
        project = given.get("project") or "uncategorized"
        run = self.server.runs.setdefault(given["name"], SentRun(given["name"], project))
        run.group = given.get("groupName") or run.group
        run.tags = given.get("tags") or run.tags
        if given.get("config"):
            run.config = json.loads(given["config"])
        return {"upsertBucket": {"bucket": _described(run), "inserted": inserted}}

    def _do_createRunFiles(self, given: dict[str, Any]) -> Any:
        url = f"{self.server.url}/upload/{given['run']}"
        files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _do_upsertView(self, given: dict[str, Any]) -> Any:
        self.server.views.append(given)
        return {"upsertView": {"view": {"id": "1", "name": given["name"]}, "inserted": True}}

    def _file_stream(self, run_id: str, told: dict[str, Any]) -> None:
        run = self.server.runs[run_id]
        for name, part in told.get("files", {}).items():
            if name == "wandb-history.jsonl":
                if part["offset"] != len(run.history):
                    run.misplaced.append((part["offset"], len(run.history)))
                run.history += [json.loads(line) for line in part["content"]]
            elif name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if told.get("complete"):
            run.exit_code = told["exitcode"]
        self._json({"exitcode": None, "limits": {}})

    def _json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _described(run: SentRun) -> dict[str, Any]:
    project = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
    return {
        "id": base64.b64encode(run.id.encode()).decode(),
        "name": run.id,
        "displayName": run.id,
        "description": None,
        "sweepName": None,
        "project": project,
        "historyLineCount": len(run.history),
    }


def _first_field(query: str) -> str:
    """What an operation asks for: `mutation X(…) { upsertView(…` is upsertView."""
    match = re.search(r"\{\s*(\w+)", query)
    return match[1] if match else ""


def alive(pid: int) -> bool:
    """Whether a process lives; one that is dead but not waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until `condition` holds; fails where it does not in `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
