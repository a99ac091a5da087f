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
_API = r"/api/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?"


class Hub(ThreadingHTTPServer):
    """Serves `root/ORG/NAME/…` as data sets.

    gated: repositories that ask for a login
    hang: answers nothing any more, from the next request on
    damage: sends other bytes than it says
    cut_after: bytes of data after which the server closes connections and answers no more
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.log: list[str] = []
        self.behave()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def behave(self) -> None:
        """Do from now on what a hub should."""
        self.hang = self.damage = False
        self.cut_after: int | None = None
        self.sent = 0
        self.gated.clear()
        self.log.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Connections that tests break are no news."""

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        asked = [line for line in self.log if line.startswith("GET") and "/resolve/" in line]
        return [line.split("/resolve/")[1].split("/", 1)[1] for line in asked]


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
        if match := re.fullmatch(_API, path):
            self._api(*match.groups(), body=body)
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._error(404, "NotFound", "no such route")

    def _allowed(self, repo: str, revision: str | None) -> bool:
        if repo in self.server.gated:
            self._error(401, "GatedRepo", f"Access to dataset {repo} is restricted.")
        elif not (self.server.root / repo).is_dir():
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in (None, "main", COMMIT):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _error(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _api(
        self, repo: str, what: str | None, revision: str | None, under: str | None, body: bytes
    ) -> None:
        if not self._allowed(repo, revision):
            return
        files = sorted(f for f in (self.server.root / repo).rglob("*") if f.is_file())
        names = [f.relative_to(self.server.root / repo).as_posix() for f in files]
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in names]
            facts = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
            facts |= {"private": False, "gated": False, "disabled": False}
            self._json({**facts, "downloads": 1, "likes": 0})
        elif what == "tree":
            prefix = f"{under}/" if under else ""
            entries = [self._entry(repo, name) for name in names if name.startswith(prefix)]
            if "recursive=true" not in self.path.lower():
                entries = self._one_level(entries, prefix)
            if entries:
                self._json(entries)
            else:
                self._error(404, "EntryNotFound", f"{under} does not exist")
        elif what == "paths-info":
            wanted = json.loads(body)["paths"]
            folders = {p for name in names for p in map(str, Path(name).parents)}
            found = [self._entry(repo, path) for path in wanted if path in names]
            self._json([*found, *(self._folder(path) for path in wanted if path in folders)])
        else:
            self._error(404, "NotFound", "no such route")

    def _one_level(self, entries: list[dict], prefix: str) -> list[dict]:
        found: dict[str, dict] = {}
        for entry in entries:
            rest = entry["path"][len(prefix) :]
            name = prefix + rest.split("/")[0]
            found[name] = entry if "/" not in rest else self._folder(name)
        return list(found.values())

    def _folder(self, path: str) -> dict:
        oid = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "directory", "path": path, "oid": oid, "size": 0}

    def _entry(self, repo: str, name: str) -> dict:
        content = (self.server.root / repo / name).read_bytes()
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not self._allowed(repo, revision):
            return
        file = self.server.root / repo / name
        if not file.is_file():
            self._error(404, "EntryNotFound", "Entry not found")
            return
        content = file.read_bytes()
        # Large files have their SHA-256 as ETag there, small ones a SHA-1.
        kind = hashlib.sha256 if name.endswith(".parquet") else hashlib.sha1
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{kind(content).hexdigest()}"'}
        headers["Accept-Ranges"] = "bytes"
        if self.server.damage:
            content = bytes(len(content))
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1])
            last = min(int(match[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, {"Content-Type": "application/octet-stream", **headers})

    def _json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(value).encode()
        self._send(status, content, {"Content-Type": "application/json", **(headers or {})})

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
