"""The preflight finds what would never learn, names it, and lets everything sound pass."""

from functools import partial

import pytest
import torch
from torch import nn

from llm.config.errors import Refused
from llm.layers.roles import declare
from llm.moe.preflight import preflight
from llm.moe.router import Routing, TopKRouter
from tests.toy_models import FEED_FORWARDS, STYLES, VOCAB, experts, transformer


class Altered(TopKRouter):
    """A router as somebody else might write it: sound, but for `alter`."""

    def __init__(self, d_model, n_experts, top_k, *, alter):
        super().__init__(
            d_model, n_experts, top_k, renormalize=top_k > 1, jitter=0.0, init_scale=0.1
        )
        self.alter = alter

    def forward(self, x_ND, tokens_N, bias_E=None):
        return self.alter(self, super().forward(x_ND), x_ND)


def model_with(alter, n_experts=4, top_k=1, **changes):
    model = transformer(experts(n_experts, top_k), **changes)
    for block in model.blocks:
        block.feed_forward.router = Altered(16, n_experts, top_k, alter=alter)
    return model


def refusal(model) -> str:
    with pytest.raises(Refused) as caught:
        preflight(model, VOCAB)
    message = str(caught.value)
    assert "\n" not in message and "train.preflight=false" in message
    return message


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("moe", FEED_FORWARDS)
def test_what_we_build_passes_as_initialised(moe, style):
    position = "learned" if style == "gpt2" else "rope"
    preflight(transformer(moe, position, style, dropout=0.1), VOCAB)


@pytest.mark.parametrize(("n_experts", "top_k"), [(64, 1), (64, 8), (2, 2)])
def test_an_expert_that_merely_got_no_token_is_no_fault(n_experts, top_k):
    preflight(transformer(experts(n_experts, top_k, balance_loss=0.0)), VOCAB)


def test_zeros_of_the_initialisation_are_no_fault():
    model = transformer("switch")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    preflight(model, VOCAB)


def test_nothing_is_changed_and_nothing_left_behind():
    model = transformer("topk", dropout=0.2)
    model.blocks[0].attention.query.weight.requires_grad_(False)  # frozen: on purpose
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    preflight(model.eval(), VOCAB)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_are_dropped_as_they_come(monkeypatch):
    """Memory: one copy and one gradient, not a second model's worth of them."""
    import llm.moe.preflight as module

    held = []
    look = module._look_at_gradient

    def count(evidence, name, original, twin):
        held.append(name)
        look(evidence, name, original, twin)
        assert twin.grad is None

    monkeypatch.setattr(module, "_look_at_gradient", count)
    model = transformer("switch")
    preflight(model, VOCAB)
    assert set(held) == {name for name, _ in model.named_parameters()}


def test_a_router_whose_weight_is_always_one():
    """Trap 1: renormalised top-1, by division and by a softmax over the chosen alone."""

    def after_the_choice(router, routing, x_ND):
        return routing._replace(weights_NK=routing.weights_NK.log().softmax(-1))

    divided = transformer("switch")
    for block in divided.blocks:
        block.feed_forward.router.renormalize = True
    for model in (divided, model_with(after_the_choice)):
        message = refusal(model)
        assert "blocks.0.feed_forward.router.weight_ED" in message
        assert "always 1" in message and "top_k=1" in message


def test_a_router_that_only_the_balance_loss_teaches():
    def detached(router, routing, x_ND):
        return routing._replace(weights_NK=routing.weights_NK.detach())

    def cut_off(router, routing, x_ND):
        return Routing(routing.experts_NK, *(tensor.detach() for tensor in routing[1:4]))

    for alter in (detached, cut_off):
        message = refusal(model_with(alter))
        assert "blocks.0.feed_forward.router.weight_ED" in message and "detached" in message


def test_a_second_parameter_that_the_router_never_uses():
    model = model_with(lambda router, routing, x_ND: routing)
    router = model.blocks[1].feed_forward.router
    router.spare_ED = declare(nn.Parameter(torch.ones(4, 16)), "router")
    assert "blocks.1.feed_forward.router.spare_ED" in refusal(model)


@pytest.mark.parametrize("top_k", [1, 2])
def test_an_expert_that_no_token_can_reach(top_k):
    """Named with the layer and its number; as a mask, and as a bias that nothing overcomes."""

    def masked(router, routing, x_ND):
        logits_NE = routing.logits_NE.index_fill(1, torch.tensor([2]), -1e9)
        probs_NE = logits_NE.softmax(-1)
        weights_NK, experts_NK = probs_NE.topk(router.top_k)
        return Routing(experts_NK, weights_NK, probs_NE, logits_NE)

    message = refusal(model_with(masked, top_k=top_k))
    assert "expert 2 " in message and "none of" in message
    assert "blocks.0.feed_forward" in message


def test_experts_whose_output_is_lost():
    model = transformer("topk")
    layer = model.blocks[1].feed_forward.experts
    layer.register_forward_hook(lambda module, given, y_MD: y_MD.detach())
    message = refusal(model)
    assert "blocks.1.feed_forward" in message and "reaches the loss" in message


def test_one_expert_multiplied_with_nothing():
    def without_the_last(router, routing, x_ND):
        return routing._replace(
            weights_NK=routing.weights_NK.masked_fill(routing.experts_NK == 3, 0.0)
        )

    message = refusal(model_with(without_the_last, top_k=2))
    assert "expert 3 " in message and "no part in the loss" in message


def test_a_dense_parameter_in_nothing_and_one_that_changes_nothing():
    model = transformer("dense")
    model.spare = declare(nn.Parameter(torch.ones(3, 3)), "matrix")
    assert "spare gets no gradient" in refusal(model)
    model = transformer("dense")
    value = model.blocks[1].attention.value
    value.register_forward_hook(lambda module, given, y: 0.0 * y)
    assert "blocks.1.attention" in refusal(model)


def test_weights_made_from_scores_for_another_choice_than_the_routers():
    """A layer may overrule the choice, and weigh what it chose by the router's probabilities."""
    model = transformer(experts(4, 1))
    for block in model.blocks:

        class Overruled(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x_ND, tokens_N, bias_E=None):
                routing = self.inner(x_ND)
                other_NK = (routing.experts_NK + 1) % 4
                weights_NK = routing.probs_NE.gather(1, other_NK)
                return Routing(other_NK, weights_NK, routing.probs_NE, routing.logits_NE)

        block.feed_forward.router = Overruled(block.feed_forward.router)
    preflight(model, VOCAB)


def test_before_the_first_step_of_a_run_unless_switched_off(llm_train, monkeypatch):
    original = TopKRouter.forward

    def detached(self, x_ND, *rest):
        routing = original(self, x_ND, *rest)
        return Routing(routing.experts_NK, *(tensor.detach() for tensor in routing[1:4]))

    monkeypatch.setattr(TopKRouter, "forward", detached)
    monkeypatch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
    quick = ["train.budget=2steps", "train.eval_every=2"]
    ended = llm_train(*quick)
    assert ended.code == 2
    *account, line = ended.err.strip().splitlines()
    assert "router.weight_ED gets no gradient" in line
    assert len(account) == 1 and "held out" in account[0]  # of the data, which stay prepared
    assert llm_train(*quick, "train.preflight=false").code == 0
    # It finished under the same identity: the flag is no part of it.
    assert "finished already" in llm_train(*quick).out


def test_the_passes_do_not_depend_on_the_batch(monkeypatch):
    """Short rows whatever the training length; more of them only for more experts."""
    sizes = []
    model = transformer(experts(4, 2), max_seq_len=512)
    forward = type(model).forward

    def watched(self, tokens_BT, targets_BT=None, **rest):
        sizes.append(tuple(tokens_BT.shape))
        return forward(self, tokens_BT, targets_BT, **rest)

    monkeypatch.setattr(type(model), "forward", watched)
    preflight(model, VOCAB, partial(torch.autocast, "cpu", torch.bfloat16))
    assert all(rows * length <= 128 for rows, length in sizes)
