"""Which tokens a step reads: a pure function of the seed and the step.

R rows, T tokens of a row
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

IGNORED = -100


class Batch(NamedTuple):
    """Rows of a step or of an evaluation."""

    tokens_RT: np.ndarray  # int64
    targets_RT: np.ndarray  # int64, −100 where nothing is to be predicted
    places_RT: np.ndarray  # int64: index of each target among the stream's targets
    documents_RT: np.ndarray  # int64: from 0 in each row, one more at each document's beginning


class Order(Protocol):
    """An endless sequence of full rows, by number.

    A step of n rows reads the rows from step · n on; rank r of w reads the r-th of w equal parts
    of these, and a micro-step a part of that: who asks for which rows changes none of them.
    """

    #: Rows in an epoch, as a fraction: an epoch ends where its last target is read.
    rows_per_epoch: float

    def rows(self, first: int, count: int) -> Batch:
        """`count` rows of the sequence, from number `first`: O(1) to get there."""

    def epochs(self, n_rows: int) -> dict[str, float]:
        """How often each part of the data is read in the first `n_rows` rows, by name.

        The name "" stands for all of it together.
        """


def mix(*numbers: int) -> int:
    """64 bits that depend on all the integers, equal on every machine (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state


def permuted(index_R: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each index goes in a permutation of range(size), without making the permutation.

    A four-round Feistel network on the next power of two, walked until it lands inside.
    """
    bits = max(1, (size - 1).bit_length())
    shift = np.uint64(bits - bits // 2)
    low, high = (np.uint64((1 << width) - 1) for width in (bits - bits // 2, bits // 2))
    states = [np.uint64(mix(key, turn)) for turn in range(4)]
    found_R = index_R.astype(np.uint64)
    outside_R = np.ones(len(found_R), bool)
    while outside_R.any():
        left_R, right_R = found_R[outside_R] >> shift, found_R[outside_R] & low
        for even, odd in (states[:2], states[2:]):
            left_R = left_R ^ (_mixed(even ^ right_R) & high)
            right_R = right_R ^ (_mixed(odd ^ left_R) & low)
        found_R[outside_R] = left_R << shift | right_R
        outside_R = found_R >= size
    return found_R.astype(np.int64)


def _mixed(state_R: np.ndarray) -> np.ndarray:
    """One round of `mix`, on integers that wrap around."""
    state_R = state_R + np.uint64(0x9E3779B97F4A7C15)
    state_R = (state_R ^ (state_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state_R = (state_R ^ (state_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state_R ^ (state_R >> np.uint64(31))


class TrainOrder:
    """Every target of the corpus exactly once an epoch, in full rows, in an order of the seed's.

    The stream is a ring (its last end-of-text is its first one), walked once around an epoch from
    a place that differs each epoch. The walks of all epochs, one behind the other, are cut into
    rows of T targets. Rows that lie in one epoch are permuted among themselves; a row across the
    boundary of two stays between them, so that an epoch's targets are all read before the next
    one's: the first n targets that training reads are each of the n targets once, whatever T.
    No row is short and nothing is left over.

    Args:
        ids: the training stream, which begins and ends with end-of-text
        seq_len: T
        seed: of the run
    """

    def __init__(self, ids: np.ndarray, seq_len: int, seed: int):
        self.ids, self.seq_len, self.seed = ids, seq_len, seed
        self.n_targets = len(ids) - 1
        self.rows_per_epoch = self.n_targets / seq_len

    def epochs(self, n_rows: int) -> dict[str, float]:
        return {"": n_rows * self.seq_len / self.n_targets}

    def rows(self, first: int, count: int) -> Batch:
        n, size = self.n_targets, self.seq_len
        # Targets are numbered along the walks of all epochs; each row is where its first one is.
        walked_R = self._placed(np.arange(first, first + count)) * size
        epoch_R = walked_R // n
        start_R = self._starts(epoch_R)
        along_RT = (walked_R - epoch_R * n)[:, None] + np.arange(size)
        places_RT = (along_RT + start_R[:, None]) % n
        jumps_RT = np.zeros((count, size), bool)
        for row in np.flatnonzero(along_RT[:, -1] >= n):  # behind its epoch's end: elsewhere
            passed_T, along_T = np.divmod(along_RT[row], n)
            places_RT[row] = (along_T + self._starts(epoch_R[row] + passed_T)) % n
            jumps_RT[row, 1:] = np.diff(places_RT[row]) % n != 1 % n
        return _batch(self.ids, places_RT, jumps_RT)

    def _placed(self, row_R: np.ndarray) -> np.ndarray:
        """Which row of the walk each row to be read is."""
        n, size = self.n_targets, self.seq_len
        placed_R, epoch_R = row_R.copy(), row_R * size // n
        for epoch in np.unique(epoch_R).tolist():
            first, end = -(-epoch * n // size), (epoch + 1) * n // size  # those that lie in it
            inside_R = (row_R >= first) & (row_R < end)
            key = mix(self.seed, epoch, 1)
            placed_R[inside_R] = first + permuted(row_R[inside_R] - first, end - first, key)
        return placed_R

    def _starts(self, epochs: np.ndarray) -> np.ndarray:
        """Where on the ring the walk of each epoch begins."""
        known = {e: mix(self.seed, e, 2) % self.n_targets for e in set(epochs.tolist())}
        return np.array([known[epoch] for epoch in epochs.tolist()], np.int64)


class MixtureOrder:
    """Rows of several corpora in exactly the stated proportions, each with its own epochs.

    Weights are taken as the decimals that they are written as, 0.3 and 0.7 as 3 and 7 of 10. Any
    10 rows that follow one another then are 3 and 7 of the two, and rows are full, so tokens are
    as exact. The first so many rows are fewer rows than there are parts away from it, wherever one
    stops: batches hardly differ in what they are made of.

    Args:
        orders: of each part, with rows of one length
        weights: of each part, in any unit; one of 0 is never read
        seed: of the run, which says where in the pattern it begins
    """

    def __init__(self, orders: Mapping[str, TrainOrder], weights: Mapping[str, float], seed: int):
        self.orders = dict(orders)
        exact = [Fraction(repr(float(weights[name]))) for name in orders]
        unit = math.lcm(*(weight.denominator for weight in exact))
        self.weights = [int(weight * unit) for weight in exact]
        common = math.gcd(*self.weights)
        self.weights = [weight // common for weight in self.weights]
        read = [order for order, w in zip(orders.values(), self.weights, strict=True) if w]
        self.rows_per_epoch = sum(order.rows_per_epoch for order in read)
        self.phases = [mix(seed, 3, index) for index in range(len(exact))]

    def counts(self, n_rows: int) -> list[int]:
        """Of the first `n_rows` rows, how many are of each part.

        The first part gets its share of the rows, rounded; the second its share of what is left.
        """
        counts, rest = [], sum(self.weights)
        for weight, phase in zip(self.weights, self.phases, strict=True):
            # Where no weight is left no row is left either.
            counts.append((n_rows * weight + phase % rest) // rest if rest else 0)
            n_rows, rest = n_rows - counts[-1], rest - weight
        return counts

    def epochs(self, n_rows: int) -> dict[str, float]:
        parts = zip(self.orders.items(), self.counts(n_rows), strict=True)
        each = {name: order.epochs(count)[""] for (name, order), count in parts}
        return {"": n_rows / self.rows_per_epoch, **each}

    def rows(self, first: int, count: int) -> Batch:
        counts_RP = np.array([self.counts(row) for row in range(first, first + count + 1)])
        part_R = np.diff(counts_RP, axis=0).argmax(1)  # each row is one more of one part
        batches, slots = [], []
        for part, order in enumerate(self.orders.values()):
            begin, end = counts_RP[0, part].item(), counts_RP[-1, part].item()
            if end > begin:
                batches.append(order.rows(begin, end - begin))
                slots.append(np.flatnonzero(part_R == part))
        back = np.argsort(np.concatenate(slots))
        return Batch(*(np.concatenate(arrays)[back] for arrays in zip(*batches, strict=True)))


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
    batch = _batch(ids, np.minimum(places_RT, len(ids) - 2), np.zeros_like(inside_RT))
    batch.targets_RT[~inside_RT] = IGNORED
    return batch


def _batch(ids: np.ndarray, places_RT: np.ndarray, jumps_RT: np.ndarray) -> Batch:
    """Rows at these places; a document begins at an end-of-text or where the row jumps."""
    tokens_RT, targets_RT = ids[places_RT].astype(np.int64), ids[places_RT + 1].astype(np.int64)
    # No text makes the end-of-text id, so the stream itself says where documents begin.
    begins_RT = (tokens_RT == ids[0]) | jumps_RT
    begins_RT[:, 0] = False
    return Batch(tokens_RT, targets_RT, places_RT, begins_RT.cumsum(1))
