"""Exact copies of documents, found in memory that does not grow with the corpus."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np

from llm.data.texts import Stretch

#: Files on disk that share the hashes, so that each can be sorted in memory: of 100 million
#: documents, 38 MB each.
PARTS = 64
#: Bytes of each that stay in memory as long as there are no more.
SPOOLED = 1 << 16
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<i8")])


def parted(records: Iterable[bytes], dtype: np.dtype) -> Iterator[np.ndarray]:
    """All records from disk, in parts; those with the same first byte are in one part."""
    with ExitStack() as stack:
        # Without names on disk, so that nothing stays behind however the process ends.
        parts = [stack.enter_context(tempfile.SpooledTemporaryFile(SPOOLED)) for _ in range(PARTS)]
        for record in records:
            parts[record[0] % PARTS].write(record)
        for part in parts:
            part.seek(0)
            yield np.frombuffer(part.read(), dtype)


class Copies:
    """Which documents are copies of an earlier one: a bit each, on disk.

    Two documents are the same where 16 bytes of BLAKE2 are.
    """

    def __init__(self, stretches: Iterable[Stretch]):
        self.count = self._documents = 0
        with tempfile.TemporaryFile() as bits:
            for number, records in enumerate(parted(self._records(stretches), _RECORD)):
                if number == 0:  # all documents are counted by now
                    bits.truncate(self._documents // 8 + 1)
                    self._bits = np.memmap(bits, np.uint8)  # stays mapped when the file is closed
                self.count += self._mark(records)

    def _records(self, stretches: Iterable[Stretch]) -> Iterator[bytes]:
        for digest in _digests(stretches):
            yield digest + self._documents.to_bytes(8, "little")
            self._documents += 1

    def _mark(self, records: np.ndarray) -> int:
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
