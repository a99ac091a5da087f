"""E feed-forward networks side by side, each applied to its own rows.

M rows sorted by expert, E experts, D model width, F feed-forward width, I inputs, O outputs of a
product, K experts of a token
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.feed_forward import ACTIVATIONS, GATED, FeedForwardShape
from llm.layers.roles import declare

#: Rows that all go through each chosen expert when text is written.
_FEW = 8


class Experts(nn.Module):
    """The feed-forward of `llm.layers.feed_forward`, E times, as stacked matrices.

    Args:
        shape: one expert's
        active: share of the experts that one token uses, for the accounts
    Shapes: (M, D) sorted by expert, and the row behind each expert's last (E,) int32 → (M, D);
        rows behind the last expert's are not worked on: what they hold is undefined
    """

    def __init__(self, shape: FeedForwardShape, n_experts: int, active: float):
        super().__init__()
        d_model, d_ff = shape.d_model, shape.d_ff
        self.n_experts = n_experts
        #: Where experts are spread over processes: `llm.moe.exchange.Exchange`.
        self.exchange: Any = None
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

    def forward(self, x_MD: Tensor, ends_E: Tensor) -> Tensor:
        if self.exchange is not None:
            return self.exchange(x_MD, ends_E, self._apply_here)
        return self._apply_here(x_MD, ends_E)

    def _apply_here(self, x_MD: Tensor, ends_E: Tensor) -> Tensor:
        up_MF = grouped_linear(x_MD, self.up_EDF, self.up_bias_EF, ends_E)
        if self.gate_EDF is None:
            hidden_MF = self.activation(up_MF)
        else:
            gate_MF = grouped_linear(x_MD, self.gate_EDF, self.gate_bias_EF, ends_E)
            hidden_MF = self.activation(gate_MF) * up_MF
        return grouped_linear(hidden_MF, self.down_EFD, self.down_bias_ED, ends_E)

    def of_few(
        self,
        x_ND: Tensor,
        experts_NK: Tensor,
        weights_NK: Tensor,
        kept_NK: Tensor | None = None,
        least: int = 1,
    ) -> Tensor:
        """Σ_k w_nk y_nk of a few tokens on a CPU, reading the chosen experts' weights only: (N, D).

        A token's bytes do not depend on the others': its experts are added in their order, and no
        product has fewer than `least` rows. (Of few rows all go through each expert, with weight 0
        where it was not chosen: a product is bound by reading the weights.)
        """
        if torch.is_autocast_enabled("cpu"):
            x_ND = x_ND.to(torch.get_autocast_dtype("cpu"))
        if kept_NK is not None:
            weights_NK = weights_NK * kept_NK
            experts_NK = experts_NK.where(kept_NK, -1)
        chosen = experts_NK.tolist()
        gate_NE = x_ND.new_zeros(len(x_ND), self.n_experts)
        gate_NE.scatter_add_(1, experts_NK.clamp_min(0), weights_NK.to(x_ND.dtype))
        y_ND = torch.zeros_like(x_ND)
        for expert in sorted({e for of_token in chosen for e in of_token if e >= 0}):
            if len(x_ND) <= _FEW:
                y_ND += self._of_one(x_ND, expert) * gate_NE[:, expert : expert + 1]
                continue
            rows = [n for n, of_token in enumerate(chosen) if expert in of_token]
            filled = rows + rows[:1] * (least - len(rows))
            out_RD = self._of_one(x_ND[filled], expert)[: len(rows)]
            y_ND[rows] += out_RD * gate_NE[rows, expert].unsqueeze(1)
        return y_ND

    def _of_one(self, x_RD: Tensor, expert: int) -> Tensor:
        """Rows through one expert, whose weights are read where they lie."""

        def product(x_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None) -> Tensor:
            weight_IO = weight_EIO[expert].to(x_RI.dtype)
            if bias_EO is None:
                return x_RI @ weight_IO
            return torch.addmm(bias_EO[expert].to(x_RI.dtype), x_RI, weight_IO)

        hidden_RF = product(x_RD, self.up_EDF, self.up_bias_EF)
        if self.gate_EDF is None:
            hidden_RF = self.activation(hidden_RF)
        else:
            gate_RF = product(x_RD, self.gate_EDF, self.gate_bias_EF)
            hidden_RF = self.activation(gate_RF) * hidden_RF
        return product(hidden_RF, self.down_EFD, self.down_bias_ED)


def grouped_linear(
    x_MI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, ends_E: Tensor
) -> Tensor:
    """Each row times the matrix of its expert, plus that expert's bias: (M, I) → (M, O)."""
    weight_EIO, bias_EO = _here(weight_EIO), _here(bias_EO)
    device = x_MI.device.type
    if torch.is_autocast_enabled(device):  # grouped_mm is not on autocast's list
        dtype = torch.get_autocast_dtype(device)
        x_MI, weight_EIO = x_MI.to(dtype), weight_EIO.to(dtype)
    if bias_EO is not None:
        bias_EO = bias_EO.to(x_MI.dtype)
    return _GroupedLinear.apply(x_MI, weight_EIO, bias_EO, ends_E)


def _here(parameter: Any) -> Any:
    """The experts that this process holds, where they are shared out."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class _GroupedLinear(torch.autograd.Function):
    """y_m = x_m W_e + b_e in one of two ways, forwards and backwards.

    On a GPU in bfloat16 `grouped_mm`, which from Hopper on never asks the host for the loads.
    Elsewhere a loop over the experts, before which the host waits for the loads. So does
    grouped_mm itself on a CPU, on older GPUs and in other types; what never waits there would pad
    every expert's rows to those of all. Ours puts the bias into the product: adding
    it row by row afterwards, and summing its gradient, costs as much as half a product (384 → 1536,
    8,192 rows, float32, one AVX2 core: dense with bias 171 ms, the loop with bias 186, grouped_mm
    170, and with the bias 262).
    """

    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, ends_E: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_MI, weight_EIO, ends_E)
        ctx.has_bias = bias_EO is not None
        if not _grouped_mm_takes(x_MI, weight_EIO):
            compiling = torch.compiler.is_compiling()
            return (_loop_op if compiling else _loop)(x_MI, weight_EIO, bias_EO, ends_E)
        y_MO = F.grouped_mm(x_MI, weight_EIO, offs=ends_E)
        if bias_EO is not None:
            y_MO = y_MO + bias_EO.index_select(0, _experts(ends_E, len(x_MI), len(bias_EO) - 1))
        return y_MO

    @staticmethod
    def backward(ctx: Any, d_MO: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x_MI, weight_EIO, ends_E = ctx.saved_tensors
        d_MO = d_MO.contiguous()
        if not _grouped_mm_takes(x_MI, weight_EIO):
            compiling = torch.compiler.is_compiling()
            backward = _loop_backward_op if compiling else _loop_backward
            has_bias = ctx.has_bias
            d_x_MI, d_weight_EIO, d_bias_EO = backward(d_MO, x_MI, weight_EIO, ends_E, has_bias)
            return d_x_MI, d_weight_EIO, d_bias_EO if has_bias else None, None
        d_x_MI = F.grouped_mm(d_MO, weight_EIO.mT, offs=ends_E)
        d_weight_EIO = F.grouped_mm(x_MI.T, d_MO, offs=ends_E)
        # What experts without rows get, some GPUs leave unwritten (PyTorch #172439, #193633).
        idle_E = ends_E.diff(prepend=ends_E.new_zeros(1)) == 0
        d_weight_EIO.masked_fill_(idle_E[:, None, None], 0.0)
        if not ctx.has_bias:
            return d_x_MI, d_weight_EIO, None, None
        # One place more than experts, for the rows behind the last expert's. Not by indexing,
        # whose gradient is summed in whatever order the threads come.
        n, width = len(weight_EIO), d_MO.shape[1]
        sums_EO = d_MO.new_zeros(n + 1, width)
        sums_EO.index_add_(0, _experts(ends_E, len(x_MI), n), d_MO)
        return d_x_MI, d_weight_EIO, sums_EO[:n], None


def _grouped_mm_takes(x_MI: Tensor, weight_EIO: Tensor) -> bool:
    """Whether grouped_mm can, and should: on CUDA, in bfloat16, with rows of whole 16 bytes.

    There are no rows where no process has any for the experts of this one.
    """
    aligned = weight_EIO.shape[1] % 8 == 0 and weight_EIO.shape[2] % 8 == 0
    return aligned and x_MI.is_cuda and x_MI.dtype is torch.bfloat16 and len(x_MI) > 0


def _experts(ends_E: Tensor, rows: int, last: int) -> Tensor:
    """The expert of each row, at most `last`: (M,)."""
    row_M = torch.arange(rows, device=ends_E.device, dtype=ends_E.dtype)
    return torch.searchsorted(ends_E, row_M, right=True).clamp_max(last)


def _groups(ends_E: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of every expert, as the host counts."""
    ends = ends_E.tolist()
    return [(e, slice(*edge)) for e, edge in enumerate(zip([0, *ends], ends, strict=False))]


def _loop(x_MI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, ends_E: Tensor) -> Tensor:
    y_MO = x_MI.new_empty(x_MI.shape[0], weight_EIO.shape[2])
    for e, rows in _groups(ends_E):
        if bias_EO is None:
            torch.mm(x_MI[rows], weight_EIO[e], out=y_MO[rows])
        else:
            torch.addmm(bias_EO[e], x_MI[rows], weight_EIO[e], out=y_MO[rows])
    return y_MO


def _loop_backward(
    d_MO: Tensor, x_MI: Tensor, weight_EIO: Tensor, ends_E: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the weights and the biases (E, 0 without)."""
    d_x_MI, d_weight_EIO = torch.empty_like(x_MI), torch.empty_like(weight_EIO)
    d_bias_EO = d_MO.new_empty(len(weight_EIO), d_MO.shape[1] if has_bias else 0)
    for e, rows in _groups(ends_E):
        torch.mm(d_MO[rows], weight_EIO[e].T, out=d_x_MI[rows])
        torch.mm(x_MI[rows].T, d_MO[rows], out=d_weight_EIO[e])  # no rows: zeros
        if has_bias:
            torch.sum(d_MO[rows], 0, out=d_bias_EO[e])
    return d_x_MI, d_weight_EIO, d_bias_EO


# A compiler sees the loops as single operations, whose shapes the loads do not change. In eager
# mode they are called directly, past the dispatcher.
_loop_op = torch.library.custom_op("llm_moe::grouped_linear", _loop, mutates_args=())
_loop_backward_op = torch.library.custom_op(
    "llm_moe::grouped_linear_backward", _loop_backward, mutates_args=()
)


@_loop_op.register_fake
def _(x_MI: Tensor, weight_EIO: Tensor, bias_EO: Tensor | None, ends_E: Tensor) -> Tensor:
    return x_MI.new_empty(x_MI.shape[0], weight_EIO.shape[2])


@_loop_backward_op.register_fake
def _(
    d_MO: Tensor, x_MI: Tensor, weight_EIO: Tensor, ends_E: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias_EO = d_MO.new_empty(weight_EIO.shape[0], d_MO.shape[1] if has_bias else 0)
    return torch.empty_like(x_MI), torch.empty_like(weight_EIO), d_bias_EO
