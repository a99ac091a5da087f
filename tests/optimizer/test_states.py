"""What every optimizer declares of its states is what it has after a step."""

import pytest
import torch

from llm.config.choices import Choices
from llm.config.schema import locate
from llm.layers.roles import role_of
from llm.optimizer.schedule import Constant
from tests.toy_models import tokens, transformer

CHOICES = Choices()


@pytest.mark.parametrize("name", CHOICES.groups["optimizer"])
def test_states_take_the_bytes_that_are_declared(name):
    node = {**CHOICES.option("optimizer", name).node, "schedule": Constant(), "lr": 1e-3}
    recipe = locate(node.pop("_target_"))(**{k: v for k, v in node.items() if k != "defaults"})
    model = transformer("topk", "learned", "gpt2", tie_embeddings=False)
    optimizer = recipe.optimizer(model)
    ids = tokens(4, 12)
    output = model(ids[:, :-1], ids[:, 1:])
    (output.loss_sum + sum(output.aux.values())).backward()
    optimizer.step()
    roles = {role_of(parameter) for parameter in model.parameters()}
    assert {"embedding", "matrix", "expert", "router", "head"} <= roles
    for parameter in model.parameters():
        states = [s for s in optimizer.state[parameter].values() if isinstance(s, torch.Tensor)]
        bytes_of_each = sum(s.nbytes for s in states if s.ndim) / parameter.numel()
        assert bytes_of_each == recipe.state_bytes(role_of(parameter))
