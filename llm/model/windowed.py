"""Sliding-window attention in blocks: time and memory grow with T, not with T².

B batch, T time, H heads, G key-value heads, C channels of a head, N blocks, Q places of a block,
J sinks, S keys that a block sees, R = B·N rows, X = B, or 1 where all rows are alike
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.layers.context import Context
from llm.model.mask import NOWHERE, Bias, mask

#: Windows below this share blocks of so many: many tiny products are slower than a few larger ones.
LEAST_BLOCK = 64


def attend_in_blocks(
    q_BHTC: Tensor,
    k_BGTC: Tensor,
    v_BGTC: Tensor,
    context: Context,
    window: int,
    n_sinks: int,
    mask_RHQS: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Exactly masked attention, where t sees s iff 0 ≤ t − s < window or s is a sink.

    Queries are cut into blocks of Q = max(window, 64) places. A block sees itself and the block
    before, 2Q keys, and the first `n_sinks` of its text where these lie before both. Only one text
    reaches from before into the earlier block, so a block needs one set of sinks, whatever the
    documents. All blocks are one call of `attend`, as rows of its batch.

    Args:
        context: of a call without cache
        mask_RHQS: `block_mask`'s
        attend: (q, k, v, mask) to what is attended to
    Returns: (B, H, T, C)
    """
    batch, _, t, _ = q_BHTC.shape
    begin_N1, size, _, sink_XNJ = _blocks(context, window, n_sinks)
    n = len(begin_N1)
    tail = n * size - t

    def blocks(x_BHTC: Tensor) -> Tensor:
        return x_BHTC.unflatten(2, (n, size)).transpose(1, 2)  # (B, N, H, Q, C)

    def keys(x_BGTC: Tensor) -> Tensor:
        padded_BGTC = F.pad(x_BGTC, (0, 0, size, tail))
        parts = [blocks(padded_BGTC[:, :, :-size]), blocks(padded_BGTC[:, :, size:])]
        if n_sinks:
            where_BJ = sink_XNJ.clamp_max(t - 1).expand(batch, n, n_sinks).flatten(1)
            where_BGJC = where_BJ[:, None, :, None].expand(-1, x_BGTC.shape[1], -1, x_BGTC.shape[3])
            parts.append(x_BGTC.gather(2, where_BGJC).unflatten(2, (n, n_sinks)).transpose(1, 2))
        return torch.cat(parts, 3).flatten(0, 1)

    q_RHQC = blocks(F.pad(q_BHTC, (0, 0, 0, tail))).flatten(0, 1)
    y_RHQC = attend(q_RHQC, keys(k_BGTC), keys(v_BGTC), mask_RHQS)
    return y_RHQC.unflatten(0, (batch, n)).transpose(1, 2).flatten(2, 3)[:, :, :t]


def block_mask(
    context: Context,
    batch: int,
    window: int,
    n_sinks: int,
    bias: Bias,
    dtype: torch.dtype,
) -> Tensor:
    """What is added to the scores of the blocks, which all layers of a window share: (R, …, Q, S).

    Args: as for `attend_in_blocks` and `llm.model.mask.mask`
    """
    begin_N1, size, start_XT, sink_XNJ = _blocks(context, window, n_sinks)
    reach_N1 = begin_N1 - size  # the first place of the block before
    query_NQ = begin_N1 + torch.arange(size, device=begin_N1.device)
    key_NS = reach_N1 + torch.arange(2 * size, device=begin_N1.device)
    key_NS = key_NS.where(key_NS >= 0, NOWHERE)
    later_XNJ = sink_XNJ.where(sink_XNJ < reach_N1, NOWHERE)  # others are in the blocks
    key_XNS = torch.cat([key_NS.expand(sink_XNJ.shape[0], -1, -1), later_XNJ], 2)
    start_XNQ = None
    if context.start_BT is not None:
        tail = query_NQ.numel() - start_XT.shape[1]
        start_XNQ = F.pad(start_XT, (0, tail)).unflatten(1, query_NQ.shape)
    mask_XNHQS = mask(query_NQ, key_XNS, start_XNQ, window, n_sinks, bias, dtype)
    return mask_XNHQS.expand(batch, -1, -1, -1, -1).flatten(0, 1)


def _blocks(context: Context, window: int, n_sinks: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Where blocks begin (N, 1), their size, where texts do (X, T), and their sinks (X, N, J)."""
    t, device = len(context.index_T), context.index_T.device
    size = max(window, LEAST_BLOCK)
    start_XT = context.index_T.new_zeros(1, t)
    if context.start_BT is not None:
        start_XT = context.start_BT.expand(-1, t)
    begin_N1 = torch.arange(0, t, size, device=device)[:, None]
    sink_XNJ = start_XT[:, (begin_N1 - size).clamp_min(0)] + torch.arange(n_sinks, device=device)
    return begin_N1, size, start_XT, sink_XNJ
