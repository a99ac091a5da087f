"""Our layers against those of `transformers`, with the same weights: outputs, gradients, losses."""

import pytest
import torch

pytest.importorskip("transformers")
from transformers import (
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from llm.moe.balance import count, switch_loss
from llm.moe.layer import MoE
from tests.toy_models import experts, router, shape

D, F, E, K = 16, 24, 8, 3


def theirs(name: str, renormalize: bool):
    sizes = {"hidden_size": D, "num_experts_per_tok": K}
    if name == "mixtral":
        config = MixtralConfig(**sizes, intermediate_size=F, num_local_experts=E)
        return mixtral.MixtralSparseMoeBlock(config)
    rest = {"num_experts": E, "norm_topk_prob": renormalize}
    if name == "olmoe":
        return olmoe.OlmoeSparseMoeBlock(OlmoeConfig(**sizes, **rest, intermediate_size=F))
    config = Qwen3MoeConfig(**sizes, **rest, moe_intermediate_size=F)
    return qwen3.Qwen3MoeSparseMoeBlock(config)


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module


def inputs(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 11, D, generator=torch.Generator().manual_seed(1))


def compare(mine: MoE, block: torch.nn.Module, x: torch.Tensor) -> None:
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    ys = [mine(leaves[0]).y_BTD, block(leaves[1])]
    torch.testing.assert_close(*ys)
    for y in ys:
        y.square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "renormalize"),
    [("mixtral", True), ("olmoe", False), ("qwen3", True), ("qwen3", False)],
)
def test_gated_blocks(name, renormalize):
    block = drawn(theirs(name, renormalize))
    mine = experts(E, K, renormalize=renormalize)(shape(activation="swiglu", bias=False))
    with torch.no_grad():
        mine.router.weight_ED.copy_(block.gate.weight)
        gate, up = block.experts.gate_up_proj.chunk(2, dim=1)
        mine.experts.gate_EDF.copy_(gate.mT)
        mine.experts.up_EDF.copy_(up.mT)
        mine.experts.down_EFD.copy_(block.experts.down_proj.mT)
    compare(mine, block, inputs())
    torch.testing.assert_close(mine.router.weight_ED.grad, block.gate.weight.grad)
    gate, up = block.experts.gate_up_proj.grad.chunk(2, dim=1)
    torch.testing.assert_close(mine.experts.up_EDF.grad, up.mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine.experts.gate_EDF.grad, gate.mT, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("module", [mixtral, olmoe, qwen3])
def test_their_balance_loss_is_k_times_ours(module):
    """Trap 2: theirs is K at balance. It is over all tokens, ours over a sequence: so one row."""
    layer = experts(E, K, balance_loss=1.0)(shape(d_model=D))
    x = inputs(1)
    ours = layer(x).aux["balance_loss"]
    logits = (layer.router(x.flatten(0, 1)).logits_NE,)
    torch.testing.assert_close(module.load_balancing_loss_func(logits, E, K), K * ours)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("renormalize", [True, False])
def test_deepseek_v3_router(renormalize, scale):
    """Chosen by score and bias, weighed by score alone; groups off."""
    config = DeepseekV3Config(
        hidden_size=D, n_routed_experts=E, num_experts_per_tok=K, n_group=1, topk_group=1,
        norm_topk_prob=renormalize, routed_scaling_factor=scale,
    )  # fmt: skip
    theirs = drawn(deepseek.DeepseekV3TopkRouter(config))
    mine = router(K, renormalize=renormalize, scores="sigmoid", scale=scale)(D, E, K)
    bias_E = torch.linspace(-0.6, 0.6, E)
    with torch.no_grad():
        mine.weight_ED.copy_(theirs.weight)
        theirs.e_score_correction_bias.copy_(bias_E)
    x = inputs().flatten(0, 1)
    logits, weights, chosen = theirs(x)
    routing = mine(x, bias_E=bias_E)
    torch.testing.assert_close(routing.logits_NE, logits)
    dense = [torch.zeros(len(x), E).scatter(1, *pair) for pair in (
        (chosen, weights), (routing.experts_NK, routing.weights_NK)
    )]  # fmt: skip
    torch.testing.assert_close(dense[1], dense[0])
    assert not torch.equal(mine(x).experts_NK, routing.experts_NK)  # the bias does something


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_switch_layer_with_capacity_and_its_loss(factor):
    """Theirs counts its capacity, and averages its loss, over each sequence, as we do."""
    limit = int(factor * 11 / E)
    config = SwitchTransformersConfig(
        d_model=D, d_ff=F, num_experts=E, expert_capacity=limit, dropout_rate=0.0,
        router_jitter_noise=0.0, dense_act_fn="gelu",
    )  # fmt: skip
    block = drawn(switch.SwitchTransformersSparseMLP(config))
    mine = experts(E, 1, balance_loss=1.0, capacity_factor=factor)(shape(bias=False))
    with torch.no_grad():
        mine.router.weight_ED.copy_(block.router.classifier.weight)
        for e in range(E):
            mine.experts.up_EDF[e] = block.experts[f"expert_{e}"].wi.weight.T
            mine.experts.down_EFD[e] = block.experts[f"expert_{e}"].wo.weight.T
    if limit < 1:
        limit = block.router.expert_capacity = 1
    x = inputs(4)
    compare(mine, block, x)
    output = mine(x)
    assert output.router["dropped"] > 0.1
    _, _, logits = block.router(x)
    probs = logits.softmax(-1)
    expected = switch.load_balancing_loss_func(probs, probs.argmax(-1))
    torch.testing.assert_close(output.aux["balance_loss"], expected)
    load = count(probs.argmax(-1, keepdim=True), E) / 11
    torch.testing.assert_close(switch_loss(load, probs), expected)
    torch.testing.assert_close(output.router["z_loss"], switch.router_z_loss_func(logits))
