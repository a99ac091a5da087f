"""The Hugging Face hub through its own libraries, with an end to waiting.

`huggingface_hub` and `datasets` try again for minutes where nobody answers. Here they work in a
thread of their own, every byte that arrives is noticed, and after `PATIENCE` seconds without one
the command ends in a line that says what to do.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from llm.config.errors import Refused
from llm.data.checksums import sha256

#: Seconds without a byte after which nobody waits any longer, and those for the first byte of all.
PATIENCE, FIRST_PATIENCE = 25.0, 10.0
REMEDY = (
    "connect to a network, or set HF_ENDPOINT to a mirror of the hub, or name a local copy of "
    "the repository: data.path=FOLDER"
)
#: Batches of rows that the thread may be ahead.
AHEAD = 4

Item = TypeVar("Item")


class _Pulse(threading.local):
    """When a byte last came, and in a worker's thread whether anybody still waits for it."""

    last = 0.0  # of all threads
    stopped: threading.Event | None = None

    def beat(self) -> None:
        self.check()
        _Pulse.last = time.monotonic()

    def check(self, *_: Any) -> None:
        if self.stopped is not None and self.stopped.is_set():
            raise _GivenUp


class _GivenUp(Exception):
    """Ends a thread that nobody waits for, which the libraries would keep trying."""


_pulse = _Pulse()


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, or the real one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def begin() -> None:
    """Make the libraries quiet, and every byte that they receive felt."""
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import datasets
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import logging

    # Xet transfers go past the client below, and cannot be watched.
    constants.HF_HUB_DISABLE_XET = True
    logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    # Nothing here becomes a tensor, and importing torch takes seconds.
    datasets.config.TORCH_AVAILABLE = False
    set_client_factory(_client)


def _client() -> Any:
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _pulse.check],
        "response": [*hooks.get("response", []), _listen],
    }
    return client


def _listen(response: Any) -> None:
    _pulse.beat()
    if hasattr(response.stream, "__iter__"):
        response.stream = _felt(response.stream)


def _felt(stream: Any) -> Any:
    """The stream of a response, beating at every chunk."""

    class Felt(type(stream)):  # type: ignore[misc]  # the client asks for its own kind of stream
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[bytes]:
            for chunk in stream:
                _pulse.beat()
                yield chunk

        def close(self) -> None:
            stream.close()

    return Felt()


def cache() -> Path:
    """Where downloads are kept, beside the hub's own cache (HF_HOME moves both)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "my-simple-llm"


def _kept(repo: str, file: str, commit: str) -> Path:
    return cache() / repo.replace("/", "--") / commit / file


def is_kept(repo: str, file: str, commit: str) -> bool:
    """Whether the file is in the cache, whole."""
    return _kept(repo, file, commit).exists()


def download(repo: str, file: str, commit: str) -> Path:
    """A file of a repository, from the cache where it is there.

    What an interrupted download brought stays, and is gone on with: the hub's own cache begins a
    file anew in each process (huggingface_hub pull request 4228).
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    whole = _kept(repo, file, commit)
    if whole.exists():
        return whole
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    whole.parent.mkdir(parents=True, exist_ok=True)
    part = whole.with_name(f"{whole.name}.part")
    with FileLock(f"{part}.lock"):
        if not whole.exists():
            url = hf_hub_url(repo, file, repo_type="dataset", revision=commit, endpoint=endpoint())
            facts = get_hf_file_metadata(url)
            with part.open("ab") as content:
                http_get(
                    facts.location,
                    content,
                    resume_size=content.tell(),
                    headers=build_hf_headers() if facts.location == url else None,
                    expected_size=facts.size,
                    displayed_filename=file,
                )
            # Of large files the hub names the SHA-256.
            if re.fullmatch("[0-9a-f]{64}", facts.etag or "") and sha256(part) != facts.etag:
                part.unlink()
                raise ConnectionError(f"{file} arrived damaged, and was deleted")
            os.replace(part, whole)
    return whole


def patiently(repo: str, work: Callable[[], Iterator[Item]], patience: float) -> Iterator[Item]:
    """The items of `work()`, made in a thread; Refused where they stop coming.

    Time that the caller takes for an item does not count, nor does a slow line, as long as it
    brings anything.

    Args:
        repo: for messages
        patience: seconds without an item or a byte
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        _pulse.stopped = stopped
        try:
            for item in work():
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    threading.Thread(target=run, daemon=True, name=f"hub {repo}").start()
    try:
        while True:
            kind, value = _next(items, repo, patience)
            if kind == "end":
                return
            if kind == "error":
                raise _refusal(value, repo) from value
            yield value
    finally:
        stopped.set()


def _next(items: "queue.Queue[tuple[str, Any]]", repo: str, patience: float) -> tuple[str, Any]:
    began = time.monotonic()
    while True:
        if not _Pulse.last:
            patience = min(patience, FIRST_PATIENCE)
        left = max(began, _Pulse.last) + patience - time.monotonic()
        if left <= 0:
            what = f"{endpoint()} has not answered for {patience:.0f} seconds"
            raise Refused(f"{repo}: {what}; {REMEDY}; the same command then goes on", "data")
        try:
            return items.get(timeout=min(left, 1.0))
        except queue.Empty:
            continue


def _refusal(error: BaseException, repo: str) -> BaseException:
    """One line for what the libraries raise; what is no trouble of theirs comes back as it is."""
    import httpx2
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    line = " ".join(str(error).split())[:300]
    name = type(error).__name__
    if isinstance(error, Refused):
        return error
    if isinstance(error, hub.GatedRepoError) or "gated dataset" in str(error):
        login = "accept its terms on the hub, then log in (`hf auth login`, or set HF_TOKEN)"
        return Refused(f"{repo} asks who you are: {login}", "data.repo")
    if isinstance(error, hub.RevisionNotFoundError) or line.startswith("Revision "):
        return Refused(f"{repo} has no such revision ({line})", "data.revision")
    if isinstance(error, hub.RepositoryNotFoundError | DatasetNotFoundError):
        which = f"there is no {repo} at {endpoint()}, or it is private"
        return Refused(f"{which}; check the name, or log in (`hf auth login`)", "data.repo")
    if "scripts are no longer supported" in line:
        way = "data.revision=refs/convert/parquet has its text, where the hub could convert it"
        return Refused(f"{repo} is a program that would have to be run, which is refused; {way}")
    if isinstance(error, DataFilesNotFoundError):
        return Refused(f"{repo} has no data files that can be read ({line})", "data")
    reasons = (httpx2.HTTPError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError, ConnectionError)
    if isinstance(error, (*reasons, TimeoutError, hub.EntryNotFoundError)):
        if constants.HF_HUB_OFFLINE:
            return Refused(f"{repo} is not on this machine, and HF_HUB_OFFLINE is set; {REMEDY}")
        return Refused(f"{repo} cannot be had from {endpoint()} ({name}: {line}); {REMEDY}", "data")
    if isinstance(error, FileNotFoundError | ValueError):  # a layout or a config that is not there
        return Refused(f"{repo}: {line}", "data")
    return error
