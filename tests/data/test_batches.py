"""Which targets a step reads: each once an epoch, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.batches import (
    IGNORED,
    MixtureOrder,
    TrainOrder,
    evaluation_rows,
    mix,
    permuted,
)

SIZES = {"n": st.integers(3, 200), "seq_len": st.integers(1, 50), "seed": st.integers(0, 2**64 - 1)}


def stream(n: int) -> np.ndarray:
    """n ids, all different but the last, which is the end-of-text that the first one is."""
    ids = np.arange(n, dtype=np.uint16)
    ids[-1] = 0
    return ids


def counted(batch) -> list[int]:
    return batch.places_RT[batch.targets_RT != IGNORED].tolist()


@given(**SIZES)
@settings(max_examples=100)
def test_every_target_exactly_once_an_epoch(n, seq_len, seed):
    """Of the targets in the order of their rows, each n that follow are all of them, once."""
    ids = stream(n)
    order = TrainOrder(ids, seq_len, seed)
    epochs = 3
    assert order.rows_per_epoch == (n - 1) / seq_len
    n_rows = -(-epochs * (n - 1) // seq_len)
    assert order.epochs(n_rows)[""] == pytest.approx(n_rows * seq_len / (n - 1))
    batch = order.rows(0, n_rows)
    assert (batch.targets_RT == ids[batch.places_RT + 1]).all()  # every row is full
    assert (batch.tokens_RT == ids[batch.places_RT]).all()
    read = batch.places_RT.ravel()
    for epoch in range(epochs):
        walk = read[epoch * (n - 1) : (epoch + 1) * (n - 1)]
        assert sorted(walk.tolist()) == list(range(n - 1))
    # rows go on around the ring, but for one jump where an epoch ends inside a row
    jumps = np.diff(batch.places_RT, axis=1) % (n - 1) != 1 % (n - 1)
    assert jumps.sum() <= n_rows * seq_len // (n - 1)
    if n - 1 >= seq_len:
        assert jumps.sum() <= epochs and (jumps.sum(1) <= 1).all()


@given(**SIZES, first=st.integers(0, 10**12), count=st.integers(1, 9))
def test_rows_are_a_function_of_seed_and_number(n, seq_len, seed, first, count):
    """In whatever order they are asked for, however they are split, however far they lie."""
    order = TrainOrder(stream(n), seq_len, seed)
    whole = order.rows(first, count)
    TrainOrder(stream(n), seq_len, seed).rows(5, 3)
    for i in reversed(range(count)):
        one = TrainOrder(stream(n), seq_len, seed).rows(first + i, 1)
        for mine, theirs in zip(one, whole, strict=True):
            assert (mine[0] == theirs[i]).all()


@st.composite
def orders(draw):
    """An order of one corpus or of several."""
    seed, seq_len = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 20))
    sizes = draw(st.lists(st.integers(3, 200), min_size=1, max_size=3))
    parts = {str(i): TrainOrder(stream(n), seq_len, seed) for i, n in enumerate(sizes)}
    weights = {name: draw(st.sampled_from([0.5, 1, 0.3, 2])) for name in parts}
    return parts["0"] if len(parts) == 1 else MixtureOrder(parts, weights, seed)


@settings(max_examples=40)
@given(orders(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6))
def test_devices_micro_batches_and_resumes_read_the_same_rows(order, rows, micro_steps, step):
    """Rank r of w reads the r-th part of each micro-step: together the batch of one device."""
    per_micro = 4 * rows  # what 1, 2 and 4 devices share
    per_step = per_micro * micro_steps
    whole = order.rows(step * per_step, per_step)
    for world in (1, 2, 4):
        share = per_micro // world
        parts = [
            order.rows(step * per_step + micro * per_micro + rank * share, share)
            for micro in range(micro_steps)
            for rank in range(world)
        ]
        for index in range(len(whole)):
            assert (np.concatenate([part[index] for part in parts]) == whole[index]).all()


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_bijection(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))
    one = permuted(np.array([size // 2]), size, key)
    assert one == permuted(np.arange(size), size, key)[size // 2]


def test_permutations_of_few_are_all_there_and_even():
    """Short corpora have few rows: their orders must not repeat either."""
    seen: dict[tuple, int] = {}
    for key in range(1200):
        order = tuple(permuted(np.arange(4), 4, mix(key, 5)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert min(seen.values()) > 20 and max(seen.values()) < 120


def test_a_row_lands_anywhere_evenly():
    three = np.array([3])
    places = np.bincount([permuted(three, 10, mix(key))[0] for key in range(2000)], minlength=10)
    assert places.min() > 150 and places.max() < 250


def test_epochs_and_seeds_differ():
    ids = stream(1000)
    orders = [TrainOrder(ids, 16, seed) for seed in (0, 1, 2**63)]
    size = 62  # rows that lie in an epoch of 999 targets
    epochs = [order.rows(epoch * (size + 1), size) for order in orders for epoch in (0, 1)]
    for i, a in enumerate(epochs):
        for b in epochs[:i]:
            assert (a.places_RT != b.places_RT).mean() > 0.9
    # the walk around the ring is another one, wherever it begins
    walks = [(np.diff(epoch.places_RT[:, 0]) % 999).tolist() for epoch in epochs]
    assert all(a != b for i, a in enumerate(walks) for b in walks[:i])
    # rows are cut elsewhere in another epoch: not the same rows in another order
    starts = [set(epoch.places_RT[:, 0].tolist()) for epoch in epochs]
    assert len(starts[0] & starts[1]) < size / 2


def test_mix_is_fixed_for_all_time():
    """A run that goes on with another version reads what it would have read."""
    assert mix(0) == 0xE220A8397B1DCDAF  # SplitMix64's first number from 0
    assert mix(1, 2, 3) != mix(3, 2, 1)
    assert mix(5, 0) != mix(5)
    assert 0 <= mix(-1, 2**70) < 2**64
    assert permuted(np.arange(6), 6, 0).tolist() == [5, 3, 4, 0, 1, 2]
    assert TrainOrder(stream(20), 4, 0).rows(3, 2).places_RT[:, 0].tolist() == [6, 10]


def test_a_far_step_is_as_near_as_the_first():
    order = TrainOrder(stream(60_000), 64, 3)
    assert order.rows(10**15, 2).tokens_RT.shape == (2, 64)


# Documents within rows


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50)
def test_document_ids_change_exactly_where_documents_do(lengths, seq_len, seed):
    """A document is its end-of-text in front and its tokens, as the model reads them."""
    ids = np.concatenate([[0, *range(1, length + 1)] for length in lengths] + [[0]])
    order, n = TrainOrder(ids, seq_len, seed), len(ids) - 1
    batch = order.rows(0, 20)
    goes_on_RT = (np.diff(batch.places_RT) % n == 1 % n) & (batch.tokens_RT[:, 1:] != 0)
    assert (batch.documents_RT[:, 0] == 0).all()
    assert (np.diff(batch.documents_RT) == ~goes_on_RT).all()
    # each document's end-of-text is a target once an epoch
    read = order.rows(0, -(-n // seq_len)).targets_RT.ravel()[:n]
    assert (read == 0).sum() == len(lengths)


# Mixtures


def part(index: int, n: int, seq_len: int) -> TrainOrder:
    ids = stream(n) + index * 1000  # so that a row says where it is from
    return TrainOrder(ids, seq_len, 0)


WEIGHTS = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any)


@settings(max_examples=60)
@given(WEIGHTS, st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.sampled_from([1, 10, 1000]))
def test_proportions_are_exact(weights, seed, first, unit):
    """In any window of as many rows as the weights have in common, and nearly so in any other."""
    parts = {str(i): part(i, 50, 4) for i in range(len(weights))}
    shares = {str(i): weight / unit for i, weight in enumerate(weights)}
    order = MixtureOrder(parts, shares, seed)
    window = sum(weights)
    rows = order.rows(first, window)
    assert np.bincount(rows.tokens_RT[:, 0] // 1000, minlength=len(weights)).tolist() == weights
    for n_rows in (first, first + window // 2, 7):
        counts = order.counts(n_rows)
        assert sum(counts) == n_rows
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - n_rows * weight / window) < len(weights)
            assert weight or not count


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_each_part_is_read_in_its_own_epochs(seq_len, seed):
    sizes = {"a": 30, "b": 11, "never": 20}
    parts = {name: part(i, n, seq_len) for i, (name, n) in enumerate(sizes.items())}
    order = MixtureOrder(parts, {"a": 0.25, "b": 0.75, "never": 0.0}, seed)
    assert order.rows_per_epoch == pytest.approx((29 + 10) / seq_len)
    n_rows = 4 * 30
    batch = order.rows(0, n_rows)
    epochs = order.epochs(n_rows)
    assert epochs == pytest.approx(
        {
            "": n_rows * seq_len / 39,
            "a": n_rows * seq_len / 4 / 29,
            "b": n_rows * seq_len * 3 / 4 / 10,
            "never": 0,
        }
    )
    for index, (name, own) in enumerate(parts.items()):
        mine = batch.tokens_RT[:, 0] // 1000 == index
        alone = own.rows(0, int(mine.sum()))
        for theirs, all_rows in zip(alone, batch, strict=True):  # as it would be read alone
            assert (all_rows[mine] == theirs).all()
        walk = batch.places_RT[mine].ravel()[: own.n_targets]
        if epochs[name] >= 1:
            assert sorted(walk.tolist()) == list(range(own.n_targets))


# Evaluation


@st.composite
def documents(draw) -> tuple[np.ndarray, np.ndarray]:
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    starts = np.cumsum([0, *(length + 1 for length in lengths[:-1])])
    ids = np.arange(1, sum(lengths) + len(lengths) + 2, dtype=np.uint16)
    ids[starts], ids[-1] = 0, 0
    return ids, starts.astype(np.int64)


@given(documents(), st.integers(1, 40))
def test_every_validation_target_once_and_from_document_starts(case, seq_len):
    ids, starts = case
    batch = evaluation_rows(ids, starts, seq_len, None)
    assert counted(batch) == list(range(len(ids) - 1))
    inside = batch.targets_RT != IGNORED
    assert (batch.targets_RT[inside] == ids[batch.places_RT[inside] + 1]).all()
    assert (batch.tokens_RT[inside] == ids[batch.places_RT[inside]]).all()
    ends = [*starts[1:].tolist(), len(ids) - 1]
    for start, end in zip(starts.tolist(), ends, strict=True):
        rows = np.flatnonzero(
            ((batch.places_RT >= start) & (batch.places_RT < end) & inside).any(1)
        )
        if end - start <= seq_len:
            assert len(rows) == 1  # what fits is whole
        else:  # what does not is cut where the row ends, from the document's start on
            assert batch.places_RT[rows[0], 0] == start
            assert (inside[rows[:-1]].all(1)).all()
    for first in batch.places_RT[:, 0].tolist():
        in_document = first - starts[np.searchsorted(starts, first, "right") - 1]
        assert in_document % seq_len == 0


@given(documents(), st.integers(1, 40), st.integers(1, 300))
def test_a_limit_takes_the_first_targets_exactly_and_changes_no_row(case, seq_len, limit):
    """The same targets for every context length, each in the row that it has without a limit."""
    ids, starts = case
    whole, part = (evaluation_rows(ids, starts, seq_len, n) for n in (None, limit))
    assert counted(part) == list(range(min(limit, len(ids) - 1)))
    rows = len(part.places_RT)
    assert (part.targets_RT != IGNORED).any(1).all()  # none is for nothing
    inside = part.targets_RT != IGNORED
    assert (part.places_RT[inside] == whole.places_RT[:rows][inside]).all()
    assert (part.tokens_RT[inside] == whole.tokens_RT[:rows][inside]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ids_come_as_int64(dtype):
    ids = np.array([0, np.iinfo(dtype).max, 2, 0], dtype)
    for batch in (
        TrainOrder(ids, 2, 0).rows(0, 2),
        evaluation_rows(ids, np.array([0]), 2, None),
    ):
        assert batch.tokens_RT.dtype == batch.targets_RT.dtype == np.int64
        assert np.iinfo(dtype).max in batch.tokens_RT
