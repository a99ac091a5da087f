"""Sparse upcycling: a dense checkpoint's feed-forward parts become experts (Komatsuzaki et al.
2022).

Every expert starts as a copy of the dense feed-forward part, and the router as in training from
scratch; all other weights are taken as they are.

D model width, F feed-forward width, E experts
"""

from torch import Tensor, nn

from llm.config.errors import Refused
from llm.moe.layer import MoE

#: A dense part's linear map, and where its weight (transposed) and its bias go.
_PLACES = {
    "up": ("up_EDF", "up_bias_EF"),
    "gate": ("gate_EDF", "gate_bias_EF"),
    "down": ("down_EFD", "down_bias_ED"),
}


def upcycle(dense: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `model`, which has experts, from one of the same model without.

    Where a token's weights add up to 1 (`renormalize`, or a softmax after the choice, and scale 1)
    the model then computes what the dense one does, until the experts part. With Switch's weights,
    which do not, each expert's part of the output is multiplied with a probability at first, and
    the loss begins higher.

    Args:
        dense: names as in the dense model's state dict; it is not changed
        model: as initialised; its routers and biases for balance stay as they are
    Raises:
        Refused: granularity or n_shared cut or add what the checkpoint has one of, or widths differ
    """
    state = dict(dense)
    own = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, MoE):
            _upcycle_layer(state, own, f"{name}." if name else "", layer)
    return state


def _upcycle_layer(
    state: dict[str, Tensor], own: dict[str, Tensor], prefix: str, layer: MoE
) -> None:
    if layer.granularity > 1:
        message = "does not go with init=upcycle: a copy is as wide as the original"
        raise Refused(message, "granularity")
    if layer.shared is not None:
        message = "does not go with init=upcycle: the copies alone add up to the original"
        raise Refused(message, "n_shared")
    for part, (weight, bias) in _PLACES.items():
        for kind, target in (("weight", weight), ("bias", bias)):
            source, place = f"{prefix}{part}.{kind}", f"{prefix}experts.{target}"
            if (source in state) != (place in own):
                raise Refused(f"is upcycle, and only one of the two models has {source}", "init")
            if source not in state:
                continue
            tensor = state.pop(source)
            one = tensor.mT if kind == "weight" else tensor
            copies = one.expand(layer.n_experts, *one.shape)
            if copies.shape != own[place].shape:
                raise Refused(
                    f"is upcycle, and {source} is {tuple(tensor.shape)}, which does not fit "
                    f"{tuple(own[place].shape)}",
                    "init",
                )
            state[place] = copies.contiguous()
    for key, value in own.items():
        if key.startswith((f"{prefix}router.", f"{prefix}balance.")):
            state[key] = value.clone()
