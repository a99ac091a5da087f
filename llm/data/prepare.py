"""From a corpus and a tokenizer to token files, once.

A prepared corpus is a folder of `outputs/data/` named after the fingerprint of all that made it:

    manifest.json    what made it, counts, sizes and checksums
    vocabulary.json  the fitted tokenizer
    train.bin, val.bin            tokens (llm/data/shards.py); test.bin where the corpus has one
    train.docs.npy, val.docs.npy  where documents start in them
    train.keys.npy, val.keys.npy  a hash of each document's text
    val.floor.npz    for instruments: true nats and skill of each validation target

Work under way is in a hidden folder beside it, and goes on there after an interruption.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from llm.config.errors import Refused
from llm.data import checksums
from llm.data.account import Account, account_of, counted
from llm.data.corpus import Corpus, Document, Instrument
from llm.data.floor import floor_of
from llm.data.progress import bar
from llm.data.shards import Encoded, Shards, files_of, safe_state, sync
from llm.data.splits import HeldOut
from llm.data.survey import among, key_of
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer

#: Of manifest.json.
FORMAT = 2
#: Of the token files; part of the fingerprint.
TOKENS_FORMAT = 1
#: The splits that every corpus has.
SPLITS = ("train", "val")
#: Characters of text that a thread tokenizes at once.
BATCH = 1 << 18
#: Seconds of work that a death may cost.
COMMIT_EVERY = 2.0


@dataclass(frozen=True)
class Prepared:
    """An opened corpus: memory-mapped ids and what is known of them."""

    folder: Path
    manifest: dict[str, Any]
    plugins: tuple[str, ...] = ()  # modules beside `llm.tokenizer` that the tokenizer may be from

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def text_fingerprint(self) -> str:
        """Of the text alone, whatever the tokenizer."""
        text = json.dumps(self.manifest["corpus"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has: "train" and "val", and "test" where the corpus has one."""
        return tuple(self.manifest["splits"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder, self.plugins)

    def tokens(self, split: str) -> np.ndarray:
        """All ids of a split, memory-mapped: (n,) uint16 or uint32."""
        return np.memmap(self.folder / f"{split}.bin", dtype=self.manifest["dtype"], mode="r")

    def document_starts(self, split: str) -> np.ndarray:
        """Where the end-of-text before each document stands, memory-mapped: (documents,) int64."""
        return np.load(self.folder / f"{split}.docs.npy", mmap_mode="r")

    def keys(self, split: str) -> np.ndarray | None:
        """A hash of each document's text: (documents,) uint64; not known to earlier versions."""
        file = self.folder / f"{split}.keys.npy"
        return np.load(file, mmap_mode="r") if file.exists() else None

    def floor(self) -> dict[str, np.ndarray] | None:
        """`nats` (n − 1,) float64 and `skills` (n − 1,) uint8 of the validation targets."""
        file = self.folder / "val.floor.npz"
        return dict(np.load(file)) if file.exists() else None


def fingerprint(corpus: Corpus, tokenizer_node: dict[str, Any]) -> str:
    """A hash of everything that determines the token files."""
    return _fingerprint(corpus.describe(), tokenizer_node)


def _fingerprint(corpus: dict[str, object], tokenizer_node: dict[str, Any]) -> str:
    facts = {"format": TOKENS_FORMAT, "corpus": corpus, "tokenizer": tokenizer_node}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, tokenizer_node: dict[str, Any], name: str, root: Path
) -> Prepared:
    """Open the prepared corpus, making it first where it is missing.

    Two processes that ask at once do the work once. A process that dies leaves nothing that the
    next could take for the whole; the next goes on from there, to the same bytes.

    Args:
        tokenizer: as configured, fitted here where it needs it
        tokenizer_node: its config, part of the fingerprint
        name: readable beginning of the folder's name
        root: `outputs/data`
    """
    try:
        return _prepare(corpus, tokenizer, tokenizer_node, name, root)
    except _Missed as missed:
        with checksums.remembering(root / ".checksums.json"):
            missed.held_out.survey(complete=True)
        return _prepare(corpus, tokenizer, tokenizer_node, name, root)


class _Missed(Exception):
    """The text went on otherwise than it began, so the share that is held out is another."""

    def __init__(self, held_out: HeldOut):
        self.held_out = held_out


def _prepare(
    corpus: Corpus, tokenizer: Tokenizer, tokenizer_node: dict[str, Any], name: str, root: Path
) -> Prepared:
    with checksums.remembering(root / ".checksums.json"):
        mark = fingerprint(corpus, tokenizer_node)
        if not (root / f"{name}-{mark}").exists() and (held_out := _held_out(corpus)) is not None:
            held_out.moves()  # of text behind a network, nothing may be known yet
            mark = fingerprint(corpus, tokenizer_node)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{name}-{mark}"
    with _alone(root / f".{folder.name}.lock", name):
        if not folder.exists():
            working, journal = root / f".{folder.name}.tmp", root / f".{folder.name}.journal"
            _make(corpus, tokenizer, tokenizer_node, mark, name, working, journal)
            os.replace(working, folder)
            journal.unlink()
            print(f"{name}: {account_of(read_manifest(folder))}", file=sys.stderr)
            _tell_unknown(Prepared(folder, read_manifest(folder)), tokenizer, name)
        # The module that the command line chose may be named by the vocabulary, too.
        prepared = open_prepared(folder, (type(tokenizer).__module__,))
    if prepared.fingerprint != mark:
        raise _damaged(folder, "manifest.json", "is of another corpus")
    return prepared


def _tell_unknown(prepared: Prepared, tokenizer: Tokenizer, name: str) -> None:
    """One line where the vocabulary lacks characters of the text that was prepared."""
    unknown = getattr(tokenizer, "unk", None)
    if unknown is not None:
        n = sum(int((prepared.tokens(split) == unknown).sum()) for split in prepared.splits)
        if n:
            print(f"{name}: {n:,} characters are not in the vocabulary", file=sys.stderr)


def _alone(lock: Path, name: str) -> Any:
    """Holds the lock within; says so where it has to wait for another process."""
    claim = FileLock(lock)
    try:
        return claim.acquire(timeout=0)
    except Timeout:
        print(f"{name}: another process prepares it; waiting", file=sys.stderr)
        return claim.acquire()


def open_prepared(folder: Path, plugins: tuple[str, ...] = ()) -> Prepared:
    """Open a prepared corpus; Refused names a file that is missing or not what it was.

    The check reads a megabyte of each file; `python -m llm.data verify` reads all.
    """
    manifest = read_manifest(folder)
    for file, problem in checksums.problems(folder, manifest["files"], full=False).items():
        raise _damaged(folder, file, problem)
    return Prepared(folder, manifest, plugins)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared corpus; Refused where it is damaged or of another format."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] == FORMAT:
            made_by = _fingerprint(manifest["corpus"], manifest["tokenizer"])
            if made_by != manifest["fingerprint"]:
                raise _damaged(folder, "manifest.json", "was altered")
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder, "manifest.json", "is missing or damaged") from None
    raise Refused(f"{folder} has format {manifest['format']}, not {FORMAT}; delete it")


def _damaged(folder: Path, file: str, problem: str) -> Refused:
    return Refused(f"{folder / file} {problem}; delete {folder} to prepare it again")


def _make(
    corpus: Corpus,
    tokenizer: Tokenizer,
    tokenizer_node: dict[str, Any],
    mark: str,
    name: str,
    working: Path,
    journal: Path,
) -> None:
    if safe_state(working, journal) is None:
        journal.unlink(missing_ok=True)
        if not _fitted(tokenizer, working):
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
    tokenizer = _fit(corpus, tokenizer, name, working)
    dtype = np.dtype("uint16" if tokenizer.vocab_size <= 2**16 else "uint32")
    shards = Shards(working, journal, dtype, tokenizer.eot, SPLITS)
    try:
        if not shards.complete:
            _write_tokens(corpus, tokenizer, shards, name)
        counts = shards.finish()
    finally:
        shards.close()
    held_out = _held_out(corpus)
    try:
        if held_out is not None and held_out.missed(counts):
            raise _Missed(held_out)
        for split in SPLITS:
            if counts[split]["tokens"] < 2 + counts[split]["documents"]:
                raise Refused(f"data: no {split} text in {name}; bring more, or other val_fraction")
        described = corpus.describe()
        if _fingerprint(described, tokenizer_node) != mark:
            raise Refused(f"{name}: the text changed while it was read; start again", "data")
    except (Refused, _Missed):
        journal.unlink()
        shutil.rmtree(working)
        raise
    account = dict(shards.account)
    if isinstance(corpus, Instrument):
        _write_floor(corpus, tokenizer, working, dtype)
    elif held_out is None and (n_both := _in_both(working, counts)):
        note = f"{counted(n_both, 'training document')} held out too, as the corpus has it"
        account["notes"] = [*account.get("notes", ()), note]
    cut = {key: n for key, n in held_out.moves().kept.items() if n} if held_out else {}
    files = sorted(file for file in working.iterdir() if file.name != "manifest.json")
    manifest = {
        "format": FORMAT,
        "fingerprint": mark,
        "name": name,
        "corpus": described,
        "tokenizer": tokenizer_node,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "splits": counts,
        "cut": cut,
        "n_cut": _in_both(working, SPLITS) if cut else 0,
        "account": account,
        "files": {file.name: checksums.facts_of(file) for file in files},
    }
    with (working / "manifest.json").open("w") as out:
        out.write(json.dumps(manifest, indent=1) + "\n")
        sync(out)


def _held_out(corpus: Corpus) -> HeldOut | None:
    return getattr(corpus, "held_out", None)


def _in_both(folder: Path, splits: Collection[str]) -> int:
    """Training documents that are in another split as well, whole or cut."""
    trained, *others = (np.load(folder / files_of(split)[2], mmap_mode="r") for split in splits)
    return len(among(trained, others))


def _fitted(tokenizer: Tokenizer, working: Path) -> bool:
    """Whether the work that was interrupted had come past the vocabulary."""
    return tokenizer.needs_fit and (working / tokenizers.FILE).exists()


def _fit(corpus: Corpus, tokenizer: Tokenizer, name: str, working: Path) -> Tokenizer:
    """The tokenizer with its vocabulary, which is then in the folder."""
    if _fitted(tokenizer, working):
        return tokenizers.load(working, (type(tokenizer).__module__,))
    if tokenizer.needs_fit:
        tokenizer.fit(texts_to_fit(tokenizer, corpus, name), corpus.pieces)
    tokenizers.save(tokenizer, working)
    with (working / tokenizers.FILE).open("rb") as file:
        os.fsync(file.fileno())
    return tokenizer


def texts_to_fit(tokenizer: Tokenizer, corpus: Corpus, name: str) -> Iterator[str]:
    """What a vocabulary is chosen from; nothing is read before the first is asked for."""
    every = getattr(tokenizer, "fits_every_split", False)
    with bar(f"{name}: vocabulary") as progress:
        for document in corpus.documents():
            progress.update(len(document.text))
            if every or document.split == "train":
                yield document.text


def _write_tokens(corpus: Corpus, tokenizer: Tokenizer, shards: Shards, name: str) -> None:
    if shards.done:
        tokens = sum(counts["tokens"] for counts in shards.counts.values())
        print(f"{name}: going on after {tokens:,} tokens", file=sys.stderr)
    documents = islice(corpus.documents(), shards.done, None)
    committed = time.monotonic()
    with bar(f"{name}: tokens") as progress:
        try:
            for encoded in _encoded(tokenizer, _batches(documents), shards.dtype):
                shards.add(encoded)
                progress.update(sum(document.n_bytes for document in encoded))
                if time.monotonic() - committed >= COMMIT_EVERY:
                    shards.commit()
                    committed = time.monotonic()
        except (Refused, KeyboardInterrupt):  # a network that stopped, say: lose nothing
            shards.commit()
            raise
    account = asdict(getattr(corpus, "account", Account()))
    held_out = _held_out(corpus)
    if held_out is not None and held_out.moves().note:
        account["notes"].append(held_out.moves().note)
    shards.commit(complete=True, account=account)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    tokenizer: Tokenizer, batches: Iterator[list[Document]], dtype: np.dtype
) -> Iterator[list[Encoded]]:
    """The batches as tokens, in their order, by a thread a core.

    tiktoken and NumPy work outside the interpreter's lock; a tokenizer written in Python gains
    nothing from it and loses little.
    """

    def encode(batch: list[Document]) -> list[Encoded]:
        return [
            Encoded(
                d.split,
                tokenizers.array_of(tokenizer, d.text).astype(dtype),
                len(d.text.encode()),
                d.more,
                key_of(d.text) if d.key is None else d.key,
            )
            for d in batch
        ]

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(threads or 1)
    waiting: deque[Future[list[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > 2 * (threads or 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_floor(corpus: Instrument, tokenizer: Tokenizer, folder: Path, dtype: np.dtype) -> None:
    ids = np.fromfile(folder / "val.bin", dtype)
    starts = np.load(folder / "val.docs.npy")
    nats, skills = floor_of(corpus, tokenizer, ids, starts)
    np.savez(folder / "val.floor.npz", nats=nats, skills=skills)
