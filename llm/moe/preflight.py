"""Before step 0: the language-model loss alone teaches every parameter, or training does not start.

A router whose weights are constant, an expert that no token can reach and a detached product all
train without an error, and the curves look normal. Here they are found in one or a few passes over
a handful of short random rows.

N tokens, E experts, K experts a token
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.layers.roles import role_of
from llm.moe.router import Routing

#: Passes at most. One does unless an expert got no token in it.
PASSES = 16
#: Tokens of a row, and at least so many rows; and so many tokens for each expert.
ROW, ROWS, TOKENS_AN_EXPERT = 16, 8, 8
#: A router's gradient below this share of the one that reaches its weights is rounding: a weight
#: that is mathematically constant leaves up to 1e-6, the softmax of 512 experts 1e-3.
ROUNDING = 3e-5


@dataclass
class _Router:
    """What one router did in the passes."""

    place: str  # its name in the model
    chosen_E: Tensor  # bool
    differentiable: bool = False
    weights: tuple[float, float] = (math.inf, -math.inf)  # the smallest and the largest
    received: float = 0.0  # largest gradient that arrived at its answer
    tokens: int = 0


@dataclass
class _Evidence:
    """Which parts of which parameters received a gradient, and how much."""

    routers: dict[str, _Router] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)  # by part: of each expert, or one


def preflight(
    model: nn.Module,
    vocab_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Prove that each parameter of `model` receives gradient from the language-model loss.

    Expert by expert where there are experts, routers of others included: any module that answers
    with a `Routing` is one. Auxiliary losses have no part in it. It is done on a copy whose
    parameters all got noise, so that zeros of the initialisation hide nothing. Where an expert
    got no token the pass is repeated with other noise on the router and on what it reads, so that
    an expert which merely was not chosen is no fault. (One draw of a router is not enough, with any
    tokens: a top-1 router never chooses an expert whose row lies within the hull of the others'.)

    The work depends on the size of the model only. Memory: one copy of the parameters and the
    largest gradient (each is dropped as soon as it was looked at), which is less than the
    optimizer will need. The model and every random state are left as they were.

    Args:
        model: keeps the forward contract; in no wrapper, on its device
        vocab_size: token ids lie below it
        autocast: the run's precision
    Raises:
        Refused: names a parameter without gradient, and why
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        probe = copy.deepcopy(model).train()
        pairs = list(zip(model.parameters(), probe.parameters(), strict=True))
        for original, twin in pairs:
            _add_noise(original, twin)
        evidence = _Evidence()
        for name, module in probe.named_modules():
            module.register_forward_hook(partial(_look_at_routing, evidence, name))
        for name, twin in probe.named_parameters():
            if twin.requires_grad:
                hook = partial(_look_at_gradient, evidence, name, model.get_parameter(name))
                twin.register_post_accumulate_grad_hook(hook)
        length = min(getattr(model, "max_seq_len", ROW), ROW)
        for turn in range(PASSES):
            experts = max((r.chosen_E.numel() for r in evidence.routers.values()), default=0)
            rows = max(ROWS, -(-TOKENS_AN_EXPERT * experts // length))
            if turn == 1:
                for place in evidence.routers:
                    probe.get_submodule(place).register_forward_pre_hook(_spread)
            if turn:
                for original, twin in pairs:
                    if role_of(original) == "router":
                        _add_noise(original, twin)
            ids = torch.randint(vocab_size, (rows, length + 1), device=device)
            with autocast():
                output = probe(ids[:, :-1], ids[:, 1:])
            output.loss_sum.backward()
            faults = _faults(model, evidence, length)
            if not faults:
                return
            if not any(fault.chance for fault in faults):
                break
    # What was not left to chance is the cause of the rest.
    first = next((fault for fault in faults if not fault.chance), faults[0])
    others = f" ({len(faults) - 1} other parameters neither)" if len(faults) > 1 else ""
    raise Refused(
        f"{first.parameter} gets no gradient from the language-model loss{others}: {first.reason}; "
        "mend it, or take train.preflight=false to train all the same"
    )


@torch.no_grad()
def _add_noise(original: nn.Parameter, twin: nn.Parameter) -> None:
    """To matrices as much as keeps the scale of their input, to vectors 0.1: nothing saturates."""
    std = 0.1
    if original.dim() >= 2:
        std = original.shape[-2 if role_of(original) == "expert" else -1] ** -0.5
    twin.normal_(std=std).add_(original)


def _spread(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Noise as large as the router's input, so that tokens differ enough to go everywhere."""
    x_ND = given[0]
    noise_ND = torch.randn_like(x_ND) * x_ND.detach().float().square().mean().sqrt()
    return (x_ND + noise_ND.to(x_ND.dtype), *given[1:])


def _look_at_routing(
    evidence: _Evidence, name: str, module: nn.Module, given: Any, answer: Any
) -> None:
    if not isinstance(answer, Routing):
        return
    n_experts = answer.probs_NE.shape[1]
    if name not in evidence.routers:
        chosen_E = torch.zeros(n_experts, dtype=torch.bool, device=answer.probs_NE.device)
        evidence.routers[name] = _Router(name, chosen_E)
    router = evidence.routers[name]
    router.tokens += len(answer.probs_NE)
    router.chosen_E[answer.experts_NK.flatten()] = True
    low, high = answer.weights_NK.detach().aminmax()
    router.weights = (min(router.weights[0], float(low)), max(router.weights[1], float(high)))

    def receive(gradient: Tensor) -> None:
        router.received = max(router.received, float(gradient.abs().max()))

    # A layer may take the weights, or scores to make weights of that suit another choice.
    for tensor in answer:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            router.differentiable = True
            tensor.register_hook(receive)


def _look_at_gradient(
    evidence: _Evidence, name: str, original: nn.Parameter, twin: nn.Parameter
) -> None:
    gradient, twin.grad = twin.grad, None
    assert gradient is not None
    parts = gradient.flatten(1) if _by_expert(evidence, name, original) else gradient.view(1, -1)
    # A norm instead of abs(): no second tensor of that size. NaN counts as received.
    largest = torch.linalg.vector_norm(parts, ord=math.inf, dim=1)
    known = evidence.largest.get(name)
    evidence.largest[name] = largest if known is None else torch.maximum(known, largest)


def _by_expert(evidence: _Evidence, name: str, parameter: nn.Parameter) -> bool:
    """Whether the first dimension of a parameter counts the experts of its layer."""
    router = _router_of(evidence, name)
    of_experts = role_of(parameter) in ("expert", "router") or getattr(parameter, "active", 1.0) < 1
    return (
        router is not None
        and of_experts
        and parameter.dim() >= 2
        and parameter.shape[0] == router.chosen_E.numel()
    )


def _router_of(evidence: _Evidence, name: str) -> _Router | None:
    """The router of the layer that a parameter is part of."""
    for router in evidence.routers.values():
        layer = router.place.rpartition(".")[0]
        if not layer or name.startswith(f"{layer}."):
            return router
    return None


@dataclass(frozen=True)
class _Fault:
    parameter: str
    reason: str
    chance: bool  # another pass may clear it up


def _faults(model: nn.Module, evidence: _Evidence, length: int) -> list[_Fault]:
    faults = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role, router = role_of(parameter), _router_of(evidence, name)
        if role == "router" and router is not None and name.startswith(f"{router.place}."):
            reason = _why_not(router, evidence.largest.get(name))
            if reason:
                faults.append(_Fault(name, reason, chance=False))
                continue
        if name not in evidence.largest:
            faults.append(_Fault(name, "nothing that depends on it reaches the loss", False))
            continue
        missing = (evidence.largest[name] == 0).nonzero().flatten().tolist()
        if not missing:
            continue
        if router is not None and evidence.largest[name].numel() == router.chosen_E.numel() > 1:
            unreached = [expert for expert in missing if not router.chosen_E[expert]]
            which = ", ".join(str(expert) for expert in missing[:8])
            which = f"{name}, expert{'s' if len(missing) > 1 else ''} {which}"
            reason = (
                f"none of {router.tokens:,} random tokens was sent there by {router.place}"
                if unreached
                else "tokens go there, and their outputs have no part in the loss"
            )
            faults.append(_Fault(which, reason, chance=True))
        elif role != "bias" and length > 1:
            # The bias of the keys moves all scores of a query alike; where positions are added
            # to the input its gradient is zero, by right. So is attention's over a single token.
            faults.append(_Fault(name, "what depends on it does not change the loss", False))
    return faults


def _why_not(router: _Router, largest: Tensor | None) -> str | None:
    """Why a router's parameter does not learn, or None where it does."""
    if not router.differentiable:
        return f"the answer of {router.place} is cut off from it (detached)"
    if router.received == 0:
        return f"the loss does not depend on the weights of {router.place}, or they are detached"
    if largest is not None and not bool(largest.max() <= ROUNDING * router.received):
        return None
    low, high = router.weights
    if high - low <= 1e-5 * abs(high):
        return (
            f"the weights that {router.place} gives are always {high:.3g}; with top_k=1 they must "
            "not be divided by their sum, nor be a softmax over the chosen expert alone"
        )
    return f"the weights that {router.place} gives do not depend on it"
