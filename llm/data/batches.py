"""Which tokens a step reads: a pure function of the seed and the step.

R rows, T tokens of a row
"""

from typing import NamedTuple

import numpy as np

IGNORED = -100


class Batch(NamedTuple):
    """Rows of a step or of an evaluation."""

    tokens_RT: np.ndarray  # int64
    targets_RT: np.ndarray  # int64, −100 where nothing is to be predicted
    places_RT: np.ndarray  # int64: index of each target among the stream's targets


def mix(*numbers: int) -> int:
    """64 bits that depend on all the integers, equal on every machine (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state


def permuted(index: int, size: int, key: int) -> int:
    """Where `index` goes in a permutation of range(size), without making the permutation.

    A four-round Feistel network on the next power of four, walked until it lands inside.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & mask)
        index = left << half | right
        if index < size:
            return index


class TrainOrder:
    """Every target of the corpus once an epoch, in full rows, in an order keyed by the seed.

    The stream is a ring (its last end-of-text is its first one), cut into rows at a place that
    differs each epoch. The one row that the ring has left over is shorter.

    Args:
        ids: the training stream
        seq_len: T
        seed: of the run
    """

    def __init__(self, ids: np.ndarray, seq_len: int, seed: int):
        self.ids, self.seq_len, self.seed = ids, seq_len, seed
        self.n_targets = len(ids) - 1
        self.rows_per_epoch = -(-self.n_targets // seq_len)

    def rows(self, first: int, count: int) -> Batch:
        """`count` rows of the endless sequence of rows, from number `first`: O(1) to get there."""
        places_RT = np.empty((count, self.seq_len), np.int64)
        inside_RT = np.empty((count, self.seq_len), bool)
        steps_T = np.arange(self.seq_len)
        for i in range(count):
            epoch, index = divmod(first + i, self.rows_per_epoch)
            row = permuted(index, self.rows_per_epoch, mix(self.seed, epoch, 1))
            along_T = row * self.seq_len + steps_T
            inside_RT[i] = along_T < self.n_targets
            places_RT[i] = (along_T + mix(self.seed, epoch, 2) % self.n_targets) % self.n_targets
        return _batch(self.ids, places_RT, inside_RT)


def evaluation_rows(ids: np.ndarray, starts: np.ndarray, seq_len: int, limit: int | None) -> Batch:
    """Validation rows that begin where documents begin.

    A row holds as many whole documents as fit; a document longer than a row is cut. So no token is
    judged for lack of a context that the row left out, while the document fits.

    Args:
        starts: where the end-of-text before each document stands
        limit: the first so many targets, exactly, so that they are the same for every `seq_len`;
            None for all
    """
    firsts: list[int] = []  # each row holds the targets [first, last)
    lasts: list[int] = []
    n_targets = len(ids) - 1
    limit = n_targets if limit is None else min(limit, n_targets)
    ends = [*starts[1:].tolist(), n_targets]
    for start, end in zip(starts.tolist(), ends, strict=True):
        if start >= limit:
            break
        if lasts and lasts[-1] == start and end - firsts[-1] <= seq_len:
            lasts[-1] = end
            continue
        for cut in range(start, min(end, limit), seq_len):
            firsts.append(cut)
            lasts.append(min(cut + seq_len, end))
    places_RT = np.array(firsts)[:, None] + np.arange(seq_len)
    # The limit comes after the layout: it changes no row before it, nor what its own row reads.
    inside_RT = places_RT < np.minimum(lasts, limit)[:, None]
    return _batch(ids, np.minimum(places_RT, len(ids) - 2), inside_RT)


def _batch(ids: np.ndarray, places_RT: np.ndarray, inside_RT: np.ndarray) -> Batch:
    targets_RT = ids[places_RT + 1].astype(np.int64)
    targets_RT[~inside_RT] = IGNORED
    return Batch(ids[places_RT].astype(np.int64), targets_RT, places_RT)
