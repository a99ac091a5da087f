"""Attention to a cache, whose bytes for one row do not depend on the other rows.

Scores and values are summed in blocks of 64 places, each block by a product of one shape, and the
blocks' sums are added in order: what lies beyond a row's own end adds exact zeros. PyTorch's fused
attention gives a row other bytes alone than among others, and others again beside longer ones.

B rows, T new places, H heads, G key-value heads, R = H/G · T queries of a group, C channels of a
key, V channels of a value, N blocks, K = 64 places of a block
"""

from functools import partial

import torch
from torch import Tensor

from llm.layers.context import Context
from llm.layers.cross_entropy import soft_capped
from llm.model.cache import BLOCK
from llm.model.mask import Bias, mask


def attend_to_cache(
    q_BHTC: Tensor,
    k_NBGKC: Tensor,
    v_NBGKV: Tensor,
    context: Context,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    n_sinks: int,
    bias: Bias,
) -> Tensor:
    """softmax(scores) V over the places that each query may see: (B, H, T, V).

    Args:
        k_NBGKC, v_NBGKV: of the rows of `context.cache`
    """
    batch, heads, t, _ = q_BHTC.shape
    groups = heads // k_NBGKC.shape[2]
    q_XRC = (q_BHTC * scale).to(k_NBGKC.dtype).reshape(-1, groups * t, q_BHTC.shape[3])
    scores = []
    blocks = _blocks(context, t, window, n_sinks)
    for n in blocks:
        scores_XRK = torch.bmm(q_XRC, k_NBGKC[n].flatten(0, 1).mT).float()
        make = partial(_mask, context, n, window, n_sinks, bias)
        seen_BHTK = context.once((n, window, n_sinks), make)
        scores.append(soft_capped(scores_XRK.view(batch, heads, t, BLOCK), softcap) + seen_BHTK)
    top_BHT1 = torch.stack([block_BHTK.amax(-1, keepdim=True) for block_BHTK in scores]).amax(0)
    y_BHTV, total_BHT1 = scores[0].new_zeros(2, 1).unbind(0)  # grows to the shape of what is added
    for n, scores_BHTK in zip(blocks, scores, strict=True):
        share_BHTK = (scores_BHTK - top_BHT1).exp()
        share_XRK = share_BHTK.view(-1, groups * t, BLOCK).to(v_NBGKV.dtype)
        part_XRV = torch.bmm(share_XRK, v_NBGKV[n].flatten(0, 1)).float()
        y_BHTV = y_BHTV + part_XRV.view(batch, heads, t, v_NBGKV.shape[4])
        total_BHT1 = total_BHT1 + share_BHTK.sum(-1, keepdim=True)
    return (y_BHTV / total_BHT1).to(q_BHTC.dtype)


def _blocks(context: Context, t: int, window: int | None, n_sinks: int) -> list[int]:
    """Those that hold something for some query: of the sinks, and of all that a window reaches."""
    starts = context.cache.starts
    end = -(-(max(starts) + t) // BLOCK)
    if window is None:
        return list(range(end))
    begin = max(0, min(starts) - window + 1) // BLOCK
    return [*range(min(-(-n_sinks // BLOCK), begin)), *range(begin, end)]


def _mask(context: Context, n: int, window: int | None, n_sinks: int, bias: Bias) -> Tensor:
    """What is added to the scores of a block: (1 or B, 1 or H, T, K)."""
    key_K = torch.arange(n * BLOCK, (n + 1) * BLOCK, device=context.index_T.device)
    mask_HTK = mask(context.index_T, key_K, None, window, n_sinks, bias, torch.float32)
    return mask_HTK if mask_HTK.dim() == 4 else mask_HTK[None]
