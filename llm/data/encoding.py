"""The characters of a file: by its byte order mark, else in the encoding that the config names."""

import codecs
import io
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

# In this order: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Bytes by which an encoding is recognised.
_HEAD = 4096
REPLACE = "data.on_encoding_error=replace goes on without what is wrong"


class Malformed(Exception):
    """What is wrong with a file, and in which line."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.problem, self.line = problem, line


def characters(
    blocks: Iterable[bytes], encoding: str | None, counts: Counter[str] | None
) -> Iterator[str]:
    """The text of `blocks`, without what Windows adds: a byte order mark, its ends of lines.

    Args:
        encoding: of text without a byte order mark; None for UTF-8
        counts: of `Decoder`
    Raises:
        Malformed: where there are such bytes, or where they are plainly of another encoding
    """
    blocks = iter(blocks)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= _HEAD:
            break
    mark, name = next((m for m in _MARKS if head.startswith(m[0])), (b"", encoding))
    if name is None and (wide := _without_mark(head[:_HEAD])):
        raise Malformed(f"is {wide.upper()} without a byte order mark; data.encoding={wide}")
    name = name or "utf-8"
    lines = io.IncrementalNewlineDecoder(Decoder(name, counts), translate=True)  # type: ignore[arg-type]
    n_lines = 1
    for block, last in chain(
        ((b, False) for b in chain([head[len(mark) :]], blocks)), [(b"", True)]
    ):
        try:
            text = lines.decode(block, final=last)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(name, "ignore")
            remedy = f"data.encoding=latin-1, or whatever it is written in; {REPLACE}"
            problem = f"is not {name.upper()} ({error.reason}); {remedy}"
            raise Malformed(problem, n_lines + before.count("\n")) from None
        n_lines += text.count("\n")
        yield text


def _without_mark(head: bytes) -> str | None:
    """The encoding of two or four bytes a character, where NULs give it away."""
    zeros = [head[i::4].count(0) for i in range(4)]
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if 50 * (even + odd) < len(head) or not head:
        return None
    if 20 * even <= odd:
        return "utf-16-le"
    if 20 * odd <= even:
        return "utf-16-be"
    if 5 * min(even, odd) >= len(head):
        return "utf-32-le" if zeros[3] > zeros[0] else "utf-32-be"
    return None


class Decoder:
    """An incremental decoder that refuses what it cannot decode, or counts what it replaces.

    Args:
        name: of the encoding
        counts: where replaced places are counted, as "replaced"; None to refuse them
    """

    def __init__(self, name: str, counts: Counter[str] | None):
        self.counts = counts
        errors = "strict" if counts is None else _COUNTED
        self._decoder = codecs.getincrementaldecoder(name)(errors)

    def decode(self, data: bytes | memoryview, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if self.counts is not None and _replaced.count:
            self.counts["replaced"] += _replaced.count
            _replaced.count = 0
        return text


class _Replaced(threading.local):
    count = 0


# "replace" as Python has it, counting.
_COUNTED = "llm.data.encoding.replace"
_replaced = _Replaced()


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    _replaced.count += 1
    return codecs.replace_errors(error)


codecs.register_error(_COUNTED, _replace)
