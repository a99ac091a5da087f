"""Exact copies of documents, found in memory that does not grow with the corpus."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np

from llm.data.texts import Stretch

#: Files on disk that share the hashes, so that each can be sorted in memory: of 100 million
#: documents, 38 MB each.
PARTS = 64
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<i8")])


class Copies:
    """Which documents are copies of an earlier one: a bit each, on disk.

    Two documents are the same where 16 bytes of BLAKE2 are.
    """

    def __init__(self, stretches: Iterable[Stretch]):
        with ExitStack() as stack:
            # Without names on disk, so that nothing stays behind however the process ends.
            parts = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(PARTS)]
            documents = 0
            for digest in _digests(stretches):
                parts[digest[0] % PARTS].write(digest + documents.to_bytes(8, "little"))
                documents += 1
            bits = stack.enter_context(tempfile.TemporaryFile())
            bits.truncate(documents // 8 + 1)
            self._bits = np.memmap(bits, np.uint8)  # stays mapped when the file is closed
            self.count = sum(self._mark(part) for part in parts)

    def _mark(self, part: IO[bytes]) -> int:
        part.seek(0)
        records = np.fromfile(part, _RECORD)
        records = records[np.lexsort((records["index"], records["low"], records["high"]))]
        same = records["high"][1:] == records["high"][:-1]
        same &= records["low"][1:] == records["low"][:-1]
        later = records["index"][1:][same]
        np.bitwise_or.at(self._bits, later >> 3, (1 << (later & 7)).astype(np.uint8))
        return len(later)

    def __contains__(self, index: int) -> bool:
        return bool(self._bits[index >> 3] >> (index & 7) & 1)

    def dropped_from(self, stretches: Iterable[Stretch]) -> Iterator[Stretch]:
        """The same documents again, without the copies."""
        index, inside = -1, False
        for stretch in stretches:
            index += not inside
            inside = stretch.more
            if index not in self:
                yield stretch


def _digests(stretches: Iterable[Stretch]) -> Iterator[bytes]:
    digest = hashlib.blake2b(digest_size=16)
    for stretch in stretches:
        digest.update(stretch.text.encode())
        if not stretch.more:
            yield digest.digest()
            digest = hashlib.blake2b(digest_size=16)
