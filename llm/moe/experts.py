"""E feed-forward networks side by side, each applied to its own rows.

M rows sorted by expert, E experts, D model width, F feed-forward width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.feed_forward import ACTIVATIONS, GATED, FeedForwardShape
from llm.layers.roles import declare
from llm.moe.dispatch import Plan

#: What grouped_mm multiplies where; a loop over the experts does the rest.
_GROUPED_TYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.bfloat16,),
}


class Experts(nn.Module):
    """The feed-forward of `llm.layers.feed_forward`, E times, as stacked matrices.

    Args:
        shape: one expert's
        active: share of the experts that one token uses, for the accounts
    Shapes: (M, D) sorted by expert → (M, D)
    """

    def __init__(self, shape: FeedForwardShape, n_experts: int, active: float):
        super().__init__()
        d_model, d_ff = shape.d_model, shape.d_ff
        self.activation = ACTIVATIONS[shape.activation]

        def matrix(d_in: int, d_out: int, std: float) -> nn.Parameter:
            weight = torch.empty(n_experts, d_in, d_out).normal_(std=std)
            return declare(nn.Parameter(weight), "expert", active)

        def bias(width: int) -> nn.Parameter | None:
            if not shape.bias:
                return None
            return declare(nn.Parameter(torch.zeros(n_experts, width)), "bias", active)

        gated = shape.activation in GATED
        self.up_EDF = matrix(d_model, d_ff, shape.init_std)
        self.gate_EDF = matrix(d_model, d_ff, shape.init_std) if gated else None
        self.down_EFD = matrix(d_ff, d_model, shape.residual_std)
        self.up_bias_EF = bias(d_ff)
        self.gate_bias_EF = bias(d_ff) if gated else None
        self.down_bias_ED = bias(d_model)

    def forward(self, x_MD: Tensor, plan: Plan) -> Tensor:
        up_MF = _product(x_MD, self.up_EDF, self.up_bias_EF, plan)
        if self.gate_EDF is None:
            hidden_MF = self.activation(up_MF)
        else:
            gate_MF = _product(x_MD, self.gate_EDF, self.gate_bias_EF, plan)
            hidden_MF = self.activation(gate_MF) * up_MF
        return _product(hidden_MF, self.down_EFD, self.down_bias_ED, plan)


def _product(x_MI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, plan: Plan) -> Tensor:
    """Each row times the matrix of its expert, plus that expert's bias."""
    device = x_MI.device.type
    if torch.is_autocast_enabled(device):  # grouped_mm is not on autocast's list
        dtype = torch.get_autocast_dtype(device)
        x_MI, weight_EIO = x_MI.to(dtype), weight_EIO.to(dtype)
    if _grouped_mm_takes(x_MI, weight_EIO):
        y_MO = F.grouped_mm(x_MI, weight_EIO, offs=plan.ends_E)
    else:
        sizes = plan.counts_E.tolist()
        parts = zip(x_MI.split(sizes), weight_EIO.unbind(), strict=True)
        y_MO = torch.cat([x @ weight for x, weight in parts])
    if bias_EO is not None:
        # Not bias_EO[…]: that sums its gradient in whatever order the threads come.
        y_MO = y_MO + bias_EO.to(y_MO.dtype).index_select(0, plan.experts_M)
    return y_MO


def _grouped_mm_takes(x_MI: Tensor, weight_EIO: Tensor) -> bool:
    """grouped_mm wants rows of whole 16 bytes, on CUDA bfloat16, and float64 nowhere."""
    whole = 16 // x_MI.element_size()
    aligned = weight_EIO.shape[1] % whole == 0 and weight_EIO.shape[2] % whole == 0
    types = _GROUPED_TYPES.get(x_MI.device.type, ())
    return aligned and x_MI.dtype in types
