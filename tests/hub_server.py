"""A hub on the loopback address: the routes of the Hugging Face hub that its libraries ask for.

It serves folders as dataset repositories, each with one commit, and can misbehave as networks do.
"""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40


class Hub(ThreadingHTTPServer):
    """Serves `root/ORG/NAME/…` as data sets.

    gated: repositories that ask for a login
    hang: answers nothing any more, from the next request on
    cut_after: bytes of data after which the server closes connections and answers no more
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.hang = False
        self.cut_after: int | None = None
        self.sent = 0
        self.log: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Connections that tests break are no news."""

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        return [line.split("/resolve/")[1] for line in self.log if line.startswith("GET") and "/resolve/" in line]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        while self.server.hang:
            time.sleep(0.05)
        if self.server.cut_after is not None and self.server.sent >= self.server.cut_after:
            self.close_connection = True
            return
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?", path):
            self._api(*match.groups(), body=body)
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._json({"error": "not found"}, 404)

    def _allowed(self, repo: str, revision: str | None) -> bool:
        if repo in self.server.gated:
            error = f"Access to dataset {repo} is restricted. You must be authenticated to access it."
            self._json({"error": error}, 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": error})
        elif not (self.server.root / repo).is_dir():
            error = "Repository not found"
            self._json({"error": error}, 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": error})
        elif revision not in (None, "main", COMMIT):
            error = f"Invalid rev id: {revision}"
            self._json({"error": error}, 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": error})
        else:
            return True
        return False

    def _api(self, repo: str, what: str | None, revision: str | None, under: str | None, body: bytes) -> None:
        if not self._allowed(repo, revision):
            return
        files = sorted(f for f in (self.server.root / repo).rglob("*") if f.is_file())
        names = [f.relative_to(self.server.root / repo).as_posix() for f in files]
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in names]
            facts = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 1}
            self._json({**facts, "private": False, "gated": False, "disabled": False, "likes": 0})
        elif what == "tree":
            entries = [self._entry(repo, name) for name in names if name.startswith(f"{under}/" if under else "")]
            if "recursive=true" not in self.path.lower():
                entries = self._one_level(entries, f"{under}/" if under else "")
            self._json(entries, 200 if entries else 404, {} if entries else {"X-Error-Code": "EntryNotFound"})
        elif what == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else []
            folders = {p for name in names for p in map(str, Path(name).parents)}
            found = [self._entry(repo, p) if p in names else self._folder(p) for p in wanted if p in names or p in folders]
            self._json(found)
        else:
            self._json({"error": "not found"}, 404)

    def _one_level(self, entries: list[dict], prefix: str) -> list[dict]:
        found: dict[str, dict] = {}
        for entry in entries:
            rest = entry["path"][len(prefix) :]
            name = prefix + rest.split("/")[0]
            found[name] = entry if "/" not in rest else self._folder(name)
        return list(found.values())

    def _folder(self, path: str) -> dict:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}

    def _entry(self, repo: str, name: str) -> dict:
        content = (self.server.root / repo / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not self._allowed(repo, revision):
            return
        file = self.server.root / repo / name
        if not file.is_file():
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1])
            last = min(int(match[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, {"Content-Type": "application/octet-stream", **headers})

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut_after is not None and headers["Content-Type"].endswith("octet-stream"):
            room = self.server.cut_after - self.server.sent
            if len(content) > room:
                self.wfile.write(content[: max(room, 0)])
                self.server.sent = self.server.cut_after
                self.close_connection = True
                self.wfile.flush()
                self.connection.close()
                return
        self.server.sent += len(content) if status in (200, 206) else 0
        self.wfile.write(content)
