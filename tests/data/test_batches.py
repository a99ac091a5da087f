"""Which targets a step reads: each once an epoch, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.batches import IGNORED, TrainOrder, evaluation_rows, mix, permuted

SIZES = {"n": st.integers(3, 200), "seq_len": st.integers(1, 50), "seed": st.integers(0, 2**64 - 1)}


def stream(n: int) -> np.ndarray:
    """n ids, all different but the last, which is the end-of-text that the first one is."""
    ids = np.arange(n, dtype=np.uint16)
    ids[-1] = 0
    return ids


def counted(batch) -> list[int]:
    return batch.places_RT[batch.targets_RT != IGNORED].tolist()


@given(**SIZES)
@settings(max_examples=150)
def test_every_target_exactly_once_an_epoch(n, seq_len, seed):
    ids = stream(n)
    order = TrainOrder(ids, seq_len, seed)
    for epoch in (0, 1, 7):
        batch = order.rows(epoch * order.rows_per_epoch, order.rows_per_epoch)
        assert sorted(counted(batch)) == list(range(n - 1))
        inside = batch.targets_RT != IGNORED
        assert (batch.targets_RT[inside] == ids[batch.places_RT[inside] + 1]).all()
        assert (batch.tokens_RT[inside] == ids[batch.places_RT[inside]]).all()
        # rows go on around the ring, and only one of them is short
        assert ((inside.sum(1) < seq_len).sum()) <= 1
        steps = np.diff(batch.places_RT, axis=1) % (n - 1)
        assert (steps == 1 % (n - 1)).all()


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
    parts = [order.rows(first, 1), order.rows(first + 1, count - 1)]
    for index in range(3):
        assert (np.concatenate([part[index] for part in parts]) == whole[index]).all()


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_bijection(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permutations_of_few_are_all_there_and_even():
    """Short corpora have few rows: their orders must not repeat either."""
    seen: dict[tuple, int] = {}
    for key in range(2400):
        order = tuple(permuted(i, 4, mix(key, 5)) for i in range(4))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert min(seen.values()) > 40 and max(seen.values()) < 240


def test_a_row_lands_anywhere_evenly():
    places = np.bincount([permuted(3, 10, mix(key)) for key in range(5000)], minlength=10)
    assert places.min() > 400 and places.max() < 600


def test_epochs_and_seeds_differ():
    ids = stream(1000)
    orders = [TrainOrder(ids, 16, seed) for seed in (0, 1, 2**63)]
    size = orders[0].rows_per_epoch
    assert size == 63  # of 999 targets
    epochs = [order.rows(epoch * size, size) for order in orders for epoch in (0, 1)]
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


def test_a_far_step_is_as_near_as_the_first():
    order = TrainOrder(stream(60_000), 64, 3)
    assert order.rows(10**15, 2).tokens_RT.shape == (2, 64)


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
