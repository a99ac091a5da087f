"""What experts cost: a layer, a training step and a decoded token, as ratios to dense ones.

    python experiments/speed/moe.py [--quick] [--threads N] [--rounds 7] [--json FILE]

Everything is measured in one run. The variants of a row take turns, so that a noisy machine is
noisy for all of them; a ratio is the median of the paired ratios of the rounds. Dense always means
a feed-forward part of equal active FLOPs: as wide as the experts that a token uses are together.

- **layer**: one feed-forward part, forward and backward, d_model 384, d_ff 1536, 8 experts; loads
  as of a router at its start (`even`), and with half of the tokens at one expert (`skewed`). Beside
  ours the same mathematics as a plain loop over the experts and as a product with one-hot vectors,
  both written here, and Mixtral's block of `transformers`, whose experts are gated: its dense is,
  too. No layer has noise; ours computes its balance losses and statistics as in training.
- **step**: forward, backward and optimizer step of a whole model.
- **decode**: ten tokens, one after another, of one sequence, the cache holding 64 and more.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.config.instantiate import instantiate
from llm.hardware.machine import DTYPES, Machine
from llm.layers.feed_forward import FeedForward, FeedForwardShape
from llm.moe.layer import MoE

D_MODEL, D_FF, N_EXPERTS = 384, 1536, 8


class Case(NamedTuple):
    """One line of the table: what is timed, and what it is compared with."""

    name: str
    run: Callable[[], object]
    dense: str  # name of the case in the same group that it is compared with


# -- baselines -----------------------------------------------------------------------------------


class LoopMoE(nn.Module):
    """A plain loop: each expert is a module, finds its tokens, and adds its outputs to them."""

    def __init__(self, shape: FeedForwardShape, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(shape.d_model, N_EXPERTS, bias=False)
        self.experts = nn.ModuleList(FeedForward(shape) for _ in range(N_EXPERTS))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        probs_NE = self.router(x_ND).float().softmax(-1)
        weights_NK, experts_NK = probs_NE.topk(self.top_k)
        y_ND = torch.zeros_like(x_ND)
        for e, expert in enumerate(self.experts):
            token_M, choice_M = (experts_NK == e).nonzero(as_tuple=True)
            out_MD = expert(x_ND[token_M][None]).y_BTD[0]
            y_ND = y_ND.index_add(
                0, token_M, (out_MD * weights_NK[token_M, choice_M, None]).to(y_ND)
            )
        return y_ND.view_as(x_BTD)


class OneHotMoE(nn.Module):
    """One-hot dispatch (Mesh TensorFlow's Switch): tokens, experts and places as one tensor.

    Places as with capacity factor 1.25 for each group of 1,024 tokens; what finds none is dropped.
    """

    def __init__(self, shape: FeedForwardShape, top_k: int, group: int = 1024):
        super().__init__()
        self.top_k, self.group = top_k, group
        self.router = nn.Linear(shape.d_model, N_EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(N_EXPERTS, shape.d_model, shape.d_ff) * shape.init_std)
        self.down = nn.Parameter(torch.randn(N_EXPERTS, shape.d_ff, shape.d_model) * shape.init_std)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_GSD = x_BTD.reshape(-1, min(self.group, x_BTD.shape[0] * x_BTD.shape[1]), D_MODEL)
        probs_GSE = self.router(x_GSD).float().softmax(-1)
        weights_GSK, experts_GSK = probs_GSE.topk(self.top_k)
        places = int(1.25 * x_GSD.shape[1] * self.top_k / N_EXPERTS)
        chosen_GSKE = F.one_hot(experts_GSK, N_EXPERTS)
        flat = chosen_GSKE.flatten(1, 2)
        place_GSKE = (flat.cumsum(1) - flat).view_as(chosen_GSKE)
        place_GSK = (place_GSKE * chosen_GSKE).sum(-1)
        inside_GSK = place_GSK < places
        slot_GSKC = F.one_hot(place_GSK.clamp_max(places - 1), places) * inside_GSK[..., None]
        combine = torch.einsum(
            "gske,gskc,gsk->gsec",
            chosen_GSKE.to(weights_GSK),
            slot_GSKC.to(weights_GSK),
            weights_GSK,
        ).to(x_BTD.dtype)
        x_GECD = torch.einsum("gsec,gsd->gecd", (combine > 0).to(x_BTD.dtype), x_GSD)
        hidden = F.gelu(torch.einsum("gecd,edf->gecf", x_GECD, self.up))
        out_GECD = torch.einsum("gecf,efd->gecd", hidden, self.down)
        return torch.einsum("gsec,gecd->gsd", combine, out_GECD).view_as(x_BTD)


def mixtral(top_k: int, experts: str) -> nn.Module:
    """The block of `transformers`, in one of its implementations of the experts."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_FF,
        num_local_experts=N_EXPERTS,
        num_experts_per_tok=top_k,
    )
    config._experts_implementation = experts
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.02)
    return block


# -- layer ---------------------------------------------------------------------------------------


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    return config


def ours(shape: FeedForwardShape, top_k: int) -> MoE:
    option = "switch" if top_k == 1 else "topk"
    node = composed(f"moe={option}", f"moe.n_experts={N_EXPERTS}", "moe.router.jitter=0")["moe"]
    layer: MoE = instantiate(node, "moe")(shape)
    return layer


def router_weight(layer: nn.Module) -> Tensor:
    for name, parameter in layer.named_parameters():
        if name in ("router.weight_ED", "router.weight", "gate.weight"):
            return parameter
    raise LookupError("no router")


def skew(layer: nn.Module, x_BTD: Tensor) -> None:
    """Send half of the first choices to expert 0: tokens are shifted along one direction."""
    with torch.no_grad():
        weight_ED = router_weight(layer)
        weight_ED.mul_(0.05)
        weight_ED[0, 0] = 10.0  # x[..., 0] is symmetric about 0: half of the tokens are above


def layer_cases(tokens: int, top_k: int, load: str, dtype: torch.dtype) -> list[Case]:
    """The variants of one group, each with the same input."""
    x_BTD = torch.randn(tokens // 256, 256, D_MODEL, dtype=dtype)

    def shape(width: int, activation: Any) -> FeedForwardShape:
        return FeedForwardShape(D_MODEL, width, activation, activation == "gelu", 0.0, 0.02, 0.02)

    def case(name: str, layer: nn.Module, dense: str) -> Case:
        layer = layer.to(dtype)
        if "dense" not in name and load == "skewed":
            skew(layer, x_BTD)
        leaf = x_BTD.clone().requires_grad_()
        d_BTD = torch.randn_like(x_BTD)

        def run() -> None:
            for parameter in layer.parameters():
                parameter.grad = None
            leaf.grad = None
            out = layer(leaf)
            y_BTD = out if isinstance(out, Tensor) else out.y_BTD
            losses = [] if isinstance(out, Tensor) else list(out.aux.values())
            torch.autograd.backward([y_BTD, *losses], [d_BTD, *map(torch.ones_like, losses)])

        return Case(name, run, dense)

    one = shape(D_FF, "gelu")
    cases = [
        case("dense", FeedForward(shape(top_k * D_FF, "gelu")), "dense"),
        case("ours", ours(one, top_k), "dense"),
    ]
    if load == "skewed":
        return cases
    return [
        *cases,
        case("loop over experts", LoopMoE(one, top_k), "dense"),
        case("one-hot dispatch", OneHotMoE(one, top_k), "dense"),
        case("dense, gated", FeedForward(shape(top_k * D_FF, "swiglu")), "dense, gated"),
        case("ours, gated", ours(shape(D_FF, "swiglu"), top_k), "dense, gated"),
        case("Mixtral, eager", mixtral(top_k, "eager"), "dense, gated"),
        case("Mixtral, grouped_mm", mixtral(top_k, "grouped_mm"), "dense, gated"),
    ]


# -- step and decode -----------------------------------------------------------------------------


def model_of(machine: Machine, *overrides: str) -> nn.Module:
    config = composed(*overrides)
    return build_model(config, 1024, device=machine.device)


def step_cases(machine: Machine, model: str, rows: int, length: int) -> list[Case]:
    """Whole training steps with the option's own optimizer."""
    ids = torch.randint(1024, (rows, length + 1), device=machine.device)

    def case(name: str, *overrides: str) -> Case:
        config = composed(
            f"model={model}", f"model.max_seq_len={length}", "optimizer=adamw", *overrides
        )
        built = build_model(config, 1024, device=machine.device)
        optimizer = instantiate(config["optimizer"], "optimizer").optimizer(built)

        def run() -> None:
            with machine.autocast():
                output = built(ids[:, :-1], ids[:, 1:])
            (output.loss_sum / (rows * length) + sum(output.aux.values())).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Case(name, run, "dense")

    return [
        case("dense", "moe=dense"),
        case("switch, 8 experts", "moe=switch", "moe.n_experts=8"),
    ]


def decode_cases(machine: Machine, model: str, top_k: int) -> list[Case]:
    """One more token of one sequence, in float32: what decodes one row fastest on a CPU."""

    def case(name: str, *overrides: str) -> Case:
        config = composed(f"model={model}", *overrides)
        built = build_model(config, 1024, device=machine.device).eval()
        cache = built.cache(1, 128)
        with torch.inference_mode():
            built(torch.zeros(1, 64, dtype=torch.long, device=machine.device), cache=cache)
        token = torch.zeros(1, 1, dtype=torch.long, device=machine.device)
        state = {"n": 0}

        def run() -> None:
            nonlocal cache
            with torch.inference_mode():
                if state["n"] == 60:
                    cache = built.cache(1, 128)
                    built(torch.zeros(1, 64, dtype=torch.long, device=machine.device), cache=cache)
                    state["n"] = 0
                for _ in range(10):
                    built(token, cache=cache)
                state["n"] += 10

        return Case(name, run, "dense")

    d_ff = composed(f"model={model}")["model"]["d_ff"]
    option = "switch" if top_k == 1 else "topk"
    return [
        case("dense", "moe=dense", f"model.d_ff={top_k * d_ff}"),
        case(f"{option}, 8 experts", f"moe={option}", "moe.n_experts=8"),
    ]


# -- the table -----------------------------------------------------------------------------------


def measure(cases: list[Case], rounds: int, machine: Machine) -> list[dict[str, Any]]:
    """Median seconds, and median paired ratio to its dense case, of each case."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(rounds + 1):
        for case in cases:
            begun = time.perf_counter()
            case.run()
            if machine.device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times[case.name].append(time.perf_counter() - begun)
    rows = []
    for case in cases:
        pairs = zip(times[case.name], times[case.dense], strict=True)
        ratio = statistics.median(mine / dense for mine, dense in pairs)
        rows.append(
            {"case": case.name, "seconds": statistics.median(times[case.name]), "of_dense": ratio}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of PyTorch; its own choice otherwise")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--only", choices=["layer", "step", "decode"], nargs="*", help="some parts")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    quick, parts = given.quick, given.only or ["layer", "step", "decode"]
    node = composed(f"hardware.precision={given.precision}")["hardware"]
    hardware = instantiate({**node, "threads": given.threads}, "hardware")
    machine = hardware.resolve()
    threads = hardware.start(machine, {})["threads"]
    torch.manual_seed(0)
    dtype = DTYPES[machine.precision]
    print(
        f"{machine.device}, {threads} threads, {machine.precision}"
        f" (layers: weights of that type too; steps: autocast; decoding: float32), "
        f"PyTorch {torch.__version__}"
    )
    rounds = 1 if quick else given.rounds
    groups: list[tuple[str, Callable[[], list[Case]]]] = []
    if "layer" in parts:
        for top_k in (1, 2):
            for tokens in (512,) if quick else (4096, 8192):
                for load in ("even", "skewed"):
                    name = f"layer, top-{top_k}, {tokens:,} tokens, {load}"
                    groups.append(
                        (name, lambda t=tokens, k=top_k, w=load: layer_cases(t, k, w, dtype))
                    )
    size = "tiny" if quick else "small"
    if "step" in parts:
        rows, length = (2, 64) if quick else (16, 256)
        name = f"step, {size}, {rows} × {length} tokens"
        groups.append((name, lambda: step_cases(machine, size, rows, length)))
    if "decode" in parts:
        for top_k in (1, 2):
            groups.append(
                (f"decode, {size}, top-{top_k}", lambda k=top_k: decode_cases(machine, size, k))
            )
    results: dict[str, Any] = {
        "device": machine.device,
        "precision": machine.precision,
        "threads": threads,
        "torch": torch.__version__,
        "groups": {},
    }
    for name, make in groups:
        more = 3 if name.startswith("decode") and not quick else 1
        rows_ = measure(make(), rounds * more, machine)
        results["groups"][name] = rows_
        print(f"\n{name}")
        for row in rows_:
            print(
                f"  {row['case']:24} {row['seconds'] * 1e3:9.1f} ms {row['of_dense']:7.2f} × dense"
            )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
