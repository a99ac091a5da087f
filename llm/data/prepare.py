"""From a corpus and a tokenizer to token files, once.

A prepared corpus is a folder of `outputs/data/` named after the fingerprint of all that made it:

    manifest.json    what made it, counts, sizes and checksums
    vocabulary.json  the fitted tokenizer
    train.bin, val.bin          ids, uint16 or uint32: end-of-text, document, end-of-text, …, and
                                a last end-of-text
    train.docs.npy, val.docs.npy  where each document's end-of-text stands in them
    val.floor.npz    for instruments: true nats and skill of each validation target
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llm.config.errors import Refused
from llm.data.corpus import Corpus, Document, Instrument
from llm.data.floor import floor_of
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer

FORMAT = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Prepared:
    """An opened corpus: memory-mapped ids and what is known of them."""

    folder: Path
    manifest: dict[str, Any]
    plugins: tuple[str, ...] = ()  # modules beside `llm.tokenizer` that the tokenizer may be from

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder, self.plugins)

    def tokens(self, split: str) -> np.ndarray:
        """All ids of a split, memory-mapped: (n,) uint16 or uint32."""
        return np.memmap(self.folder / f"{split}.bin", dtype=self.manifest["dtype"], mode="r")

    def document_starts(self, split: str) -> np.ndarray:
        """Where the end-of-text before each document stands: (documents,) int64."""
        return np.load(self.folder / f"{split}.docs.npy")

    def floor(self) -> dict[str, np.ndarray] | None:
        """`nats` (n − 1,) float64 and `skills` (n − 1,) uint8 of the validation targets."""
        file = self.folder / "val.floor.npz"
        return dict(np.load(file)) if file.exists() else None


def fingerprint(corpus: Corpus, tokenizer_node: dict[str, Any]) -> str:
    """A hash of everything that determines the token files."""
    facts = {"format": FORMAT, "corpus": corpus.describe(), "tokenizer": tokenizer_node}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, tokenizer_node: dict[str, Any], name: str, root: Path
) -> Prepared:
    """Open the prepared corpus, making it first where it is missing.

    Two processes that ask at once do the work once; a process that dies leaves nothing that the
    next could take for the whole.

    Args:
        tokenizer: as configured, fitted here where it needs it
        tokenizer_node: its config, part of the fingerprint
        name: readable beginning of the folder's name
        root: `outputs/data`
    """
    mark = fingerprint(corpus, tokenizer_node)
    folder = root / f"{name}-{mark}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{folder.name}.lock"):
        if not folder.exists():
            working = root / f".{folder.name}.tmp"
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
            _make(corpus, tokenizer, mark, name, working)
            if fingerprint(corpus, tokenizer_node) != mark:
                raise Refused(f"{name}: the text changed while it was read; start again", "data")
            os.replace(working, folder)
        # The module that the command line chose may be named by the vocabulary, too.
        return open_prepared(folder, (type(tokenizer).__module__,))


def open_prepared(folder: Path, plugins: tuple[str, ...] = ()) -> Prepared:
    """Open a prepared corpus; Refused names a file that is missing or of another size."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, ValueError):
        problem = f"{folder / 'manifest.json'} is missing or damaged"
        raise Refused(f"{problem}; delete {folder} to prepare it again") from None
    if manifest["format"] != FORMAT:
        raise Refused(f"{folder} has format {manifest['format']}, not {FORMAT}; delete it")
    for file, facts in manifest["files"].items():
        size = (folder / file).stat().st_size if (folder / file).exists() else -1
        if size != facts["size"]:
            state = "is missing" if size < 0 else f"has {size} bytes instead of {facts['size']}"
            raise Refused(f"{folder / file} {state}; delete {folder} to prepare it again")
    return Prepared(folder, manifest, plugins)


def _make(corpus: Corpus, tokenizer: Tokenizer, mark: str, name: str, folder: Path) -> None:
    if tokenizer.needs_fit:
        tokenizer.fit(training_texts(corpus, f"{name}: vocabulary"), corpus.pieces)
    tokenizers.save(tokenizer, folder)
    dtype = np.dtype("uint16" if tokenizer.vocab_size <= 2**16 else "uint32")
    counts = _write_tokens(corpus, tokenizer, dtype, name, folder)
    for split in SPLITS:
        if counts[split]["tokens"] < 2 + counts[split]["documents"]:
            raise Refused(f"data: no {split} text in {name}; bring more, or other val_fraction")
    if isinstance(corpus, Instrument):
        _write_floor(corpus, tokenizer, folder, dtype)
    files = sorted(folder.iterdir())
    manifest = {
        "format": FORMAT,
        "fingerprint": mark,
        "name": name,
        "corpus": corpus.describe(),
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "splits": counts,
        "files": {
            file.name: {
                "size": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in files
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def training_texts(corpus: Corpus, label: str) -> Iterator[str]:
    """What a vocabulary is chosen from; nothing is read before the first is asked for."""
    for document in _shown(corpus.documents(), label):
        if document.split == "train":
            yield document.text


def _shown(documents: Iterator[Document], label: str) -> Iterator[Document]:
    from tqdm import tqdm

    return iter(
        tqdm(documents, desc=label, unit=" documents", leave=False, mininterval=0.5, disable=None)
    )


def _write_tokens(
    corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype, name: str, folder: Path
) -> dict[str, dict[str, int]]:
    starts: dict[str, list[int]] = {split: [] for split in SPLITS}
    lengths = dict.fromkeys(SPLITS, 0)
    n_bytes = dict.fromkeys(SPLITS, 0)
    eot = np.array([tokenizer.eot], dtype)
    files = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for text, split in _shown(corpus.documents(), f"{name}: tokens"):
            assert split is not None, "a corpus says of each document which split it is in"
            ids = tokenizer.encode(text).astype(dtype)
            starts[split].append(lengths[split])
            files[split].write(eot.tobytes() + ids.tobytes())
            lengths[split] += 1 + len(ids)
            n_bytes[split] += len(text.encode())
        for split in SPLITS:
            files[split].write(eot.tobytes())
    finally:
        for file in files.values():
            file.close()
    for split in SPLITS:
        np.save(folder / f"{split}.docs.npy", np.array(starts[split], np.int64))
    return {
        split: {
            "documents": len(starts[split]),
            "tokens": lengths[split] + 1,
            "bytes": n_bytes[split],
        }
        for split in SPLITS
    }


def _write_floor(corpus: Instrument, tokenizer: Tokenizer, folder: Path, dtype: np.dtype) -> None:
    ids = np.fromfile(folder / "val.bin", dtype)
    starts = np.load(folder / "val.docs.npy")
    nats, skills = floor_of(corpus, tokenizer, ids, starts)
    np.savez(folder / "val.floor.npz", nats=nats, skills=skills)
