"""What an objective answers, without a trainer."""

import numpy as np
import pytest
import torch

from llm.data.batches import Batch, TrainOrder, evaluation_rows
from llm.data.feed import Feed
from llm.evaluate import Examination, examine
from llm.hardware.world import World
from llm.objective.base import Metric
from llm.objective.pretrain import Pretrain
from tests.toy_models import randomised, reading, tokens, transformer


def test_pretrain_reads_its_order_and_evaluates_as_everybody_does():
    ids = tokens(1, 200)[0].numpy()
    order, read = TrainOrder(ids, 12, seed=3), reading()
    exam = Examination(evaluation_rows(ids, np.zeros(1, np.int64), 12, 50), None)
    model, objective = randomised(transformer("topk")), Pretrain(order, exam, 4)
    batch = objective.batch(8, model, read, World())
    for drawn, ordered in zip(batch, order.rows(8, 4), strict=True):
        torch.testing.assert_close(torch.from_numpy(drawn), torch.from_numpy(ordered))
    assert objective.epochs(20) == order.epochs(20)
    metrics = objective.evaluate(model, read, World())
    assert metrics == examine(model, exam, read)
    assert objective.metric.cost(metrics) == metrics["val/loss"]


@pytest.mark.parametrize(("better", "cost"), [("lower", 0.25), ("higher", -0.25)])
def test_a_metric_says_which_way_is_better(better, cost):
    assert Metric("reward", better).cost({"reward": 0.25, "val/loss": 7.0}) == cost


@pytest.mark.parametrize("ahead", [True, False])
def test_what_depends_on_the_weights_is_not_read_ahead(ahead):
    drawn: list[int] = []

    def draw(first: int) -> Batch:
        drawn.append(first)
        return Batch(*[tokens(1, 2).numpy()] * len(Batch._fields))

    feed = Feed(draw, ahead)
    feed.take(0, 4)
    feed.take(4, 8)
    feed.close()
    assert drawn[:2] == [0, 4]
    if not ahead:
        assert drawn == [0, 4]
