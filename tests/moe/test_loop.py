"""What the training loop does for the experts: any split is equal, the bias is in checkpoints."""

import pytest
import torch
from safetensors.torch import load_file

SAME = ["moe=loss_free", "moe.balance=switch+importance+z+bias", "moe.bias_update=0.1"]
SAME += ["moe.router.jitter=0", "train.budget=4steps"]


def weights(folder):
    (file,) = (folder / "checkpoints" / "step-00000004").glob("model*.safetensors")
    return load_file(file)


def test_grad_accumulation_changes_neither_weights_nor_bias(llm_train):
    ended = [
        llm_train(*SAME, "train.batch_size=4"),
        llm_train(*SAME, "train.batch_size=2", "train.grad_accum_steps=2"),
    ]
    assert [e.code for e in ended] == [0, 0], [e.err for e in ended]
    whole, split = (weights(e.folder) for e in ended)
    biases = [name for name in whole if name.endswith("balance.bias_E")]
    assert len(biases) == 2
    for name in biases:  # four steps of ±0.1, none where the load is the mean
        assert whole[name].abs().max() == pytest.approx(0.4, abs=0.21)
        torch.testing.assert_close(split[name], whole[name])
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], atol=1e-4, rtol=1e-3)


def test_expert_choice_says_at_the_start_that_it_is_not_causal(llm_train):
    ended = llm_train("moe=expert_choice", "train.budget=1steps")
    assert ended.code == 0, ended.err
    assert "not causal" in ended.err


def test_upcycling_needs_something_to_start_from(llm_train):
    ended = llm_train("moe=topk", "moe.init=upcycle")
    assert ended.code == 2 and "model.init_from" in ended.err
