"""Our tokenizers as a `tokenizer.json` that gives the same ids in other tools.

The format is that of the `tokenizers` library. Byte-level models write a byte as a character, as
GPT-2's file of merges does (`llm.tokenizer.byte_pairs`).
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from llm.config.errors import Refused
from llm.tokenizer.base import Tokenizer
from llm.tokenizer.bpe import BPE
from llm.tokenizer.byte_pairs import BYTE_OF, FIRST_IDS, PATTERN, bytes_of
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.gpt2 import GPT2
from llm.tokenizer.pieces import PIECES
from llm.tokenizer.words import FIRST_PIECE, Words

END = "<|endoftext|>"
_BYTES_AS_TEXT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


_CHARACTERS = [character for _, character in sorted((v, c) for c, v in BYTE_OF.items())]


def as_text(token: bytes) -> str:
    return "".join(_CHARACTERS[value] for value in token)


def as_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; those of its text where it is none."""
    try:
        return bytes_of(token)
    except KeyError:
        return token.encode()


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind a vocabulary, in their order.

    Tokens are numbered in the order in which they were merged, so the last merge of a token is what
    the merges of smaller rank leave of its bytes: two parts.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [bytes([value]) for value in token]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(joined)
            if best >= rank:
                raise ValueError(f"no two tokens of smaller rank make {token!r}")
            at = joined.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def tokenizer_files(tokenizer: Tokenizer, max_len: int) -> dict[str, dict[str, Any]] | None:
    """tokenizer.json and tokenizer_config.json, None for a tokenizer of another package.

    Args:
        max_len: positions of the model, which tools warn beyond
    """
    describe = _KINDS.get(type(tokenizer))
    if describe is None:
        return None
    special = {
        "id": tokenizer.eot,
        "content": END,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special],
        "normalizer": None,
        "post_processor": None,
        **describe(tokenizer),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_len,
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        # As ours: what looks like the end of a text in a text is text.
        "split_special_tokens": True,
    }
    return {"tokenizer.json": content, "tokenizer_config.json": config}


def byte_pairs_of(content: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a tokenizer.json describes, where it is byte pairs in GPT-2's manner.

    None for any other. Compared, not trusted: the merges must be those that the vocabulary implies.
    """
    model, cut = content.get("model") or {}, content.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    byte_level = steps[-1]
    pattern = byte_level.get("use_regex", True) if len(steps) == 1 else steps[:-1] == [_CUT]
    special = [(added.get("content"), added.get("id")) for added in content.get("added_tokens", [])]
    vocabulary = dict(model.get("vocab") or {})
    vocabulary.pop(END, None)
    if (
        model.get("type") != "BPE"
        or byte_level.get("type") != "ByteLevel"
        or byte_level.get("add_prefix_space", True)
        or pattern is not True
        or content.get("normalizer") is not None
        or special != [(END, len(vocabulary))]
        or sorted(vocabulary.values()) != list(range(len(vocabulary)))
    ):
        return None
    written = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    pieces = [as_bytes(text) for text in sorted(vocabulary, key=vocabulary.__getitem__)]
    found = BPE()
    try:
        found.restore({"cut_by": PATTERN, "pieces": [p.decode("latin-1") for p in pieces[256:]]})
        if pieces[:256] != FIRST_IDS or not _merged_by(pieces, written):
            return None
    except ValueError:
        return None
    published = GPT2()
    if found.vocab_size == published.vocab_size and _same_table(found, published):
        return published
    return found


def _merged_by(pieces: list[bytes], written: list[tuple[str, ...]]) -> bool:
    """Whether these merges, in this order, are those that the vocabulary implies."""
    implied = merges_of({piece: rank for rank, piece in enumerate(pieces)})
    return [(as_text(a), as_text(b)) for a, b in implied] == written


def _same_table(found: Tokenizer, published: Tokenizer) -> bool:
    ids = range(published.vocab_size)
    try:
        return all(found.token_bytes(token) == published.token_bytes(token) for token in ids)
    except Refused:  # GPT-2's own vocabulary is not on this machine: then it is only an equal one
        return False


def _byte_level(
    vocabulary: Mapping[str, int], merges: list[tuple[bytes, bytes]], *before: dict[str, Any]
) -> dict[str, Any]:
    """A model of bytes; `before` are what cuts the text first."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        # A piece that is a token is taken before anything is merged: as tiktoken does, and as words
        # are found. An uncut text could be the end-of-text token's name.
        "ignore_merges": bool(before),
        "vocab": dict(vocabulary),
        "merges": [[as_text(a), as_text(b)] for a, b in merges],
    }
    steps = [*before, {**_BYTES_AS_TEXT, "use_regex": False}]
    return {
        "model": model,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**_BYTES_AS_TEXT, "use_regex": False},
    }


def _cut_at(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_CUT = _cut_at(PATTERN)


def _byte_pairs(tokenizer: Tokenizer) -> dict[str, Any]:
    ranks = {tokenizer.token_bytes(token): token for token in range(tokenizer.eot)}
    vocabulary = {as_text(token): rank for token, rank in ranks.items()} | {END: tokenizer.eot}
    return _byte_level(vocabulary, merges_of(ranks), _CUT)


def _bytes(tokenizer: Tokenizer) -> dict[str, Any]:
    vocabulary = {character: value for value, character in enumerate(_CHARACTERS)}
    return _byte_level(vocabulary | {END: tokenizer.eot}, [])


def _words(tokenizer: Tokenizer) -> dict[str, Any]:
    """Known pieces are tokens, others their bytes, which nothing merges."""
    vocabulary = {character: 1 + value for value, character in enumerate(_CHARACTERS)}
    for token in range(FIRST_PIECE, tokenizer.vocab_size):
        vocabulary[as_text(tokenizer.token_bytes(token))] = token
    return _byte_level(vocabulary | {END: tokenizer.eot}, [], _cut_at(PIECES.pattern))


def _chars(tokenizer: Tokenizer) -> dict[str, Any]:
    """A character a token; what the vocabulary lacks is U+FFFD, its last id."""
    n = tokenizer.eot
    vocabulary = {tokenizer.token_bytes(token).decode(): token for token in range(n)}
    unknown = "\ufffd" if "\ufffd" not in vocabulary else "<unk>"
    vocabulary |= {END: n, unknown: n + 1}
    return {
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
        "pre_tokenizer": _cut_at(r"(?m:.)"),
        "decoder": {"type": "Fuse"},
    }


_KINDS: dict[type, Callable[[Tokenizer], dict[str, Any]]] = {
    GPT2: _byte_pairs,
    BPE: _byte_pairs,
    Bytes: _bytes,
    Words: _words,
    Chars: _chars,
}
