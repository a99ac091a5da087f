"""The output head and its cross-entropy, without ever holding all logits.

N tokens (B·T), D model width, V vocabulary, C rows of one chunk
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Logits of one chunk, at most: float32 128 MiB, and as much for their softmax.
_CHUNK_NUMBERS = 2**25
#: Rows of a chunk are a multiple of this where there are so many: what the products' tiles like.
_TILE = 256
IGNORED = -100


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Σ −log softmax(h Wᵀ)[target] in nats over the rows whose target is not −100.

    With `z_loss`, log² Z of each such row is added to the sum so many times, where log Z is the
    softmax's normaliser: that keeps the logits from drifting (PaLM, Chowdhery et al. 2022, §5).

    Logits exist for one chunk of rows at a time, in float32; where gradients are wanted they are
    formed in the same pass, so that nothing is computed twice: 6·N·D·V operations, as for the
    plain version, with C·V instead of N·V float32 numbers. Under autocast the products run in the
    autocast type; the weight's gradient is summed in float32. With `softcap` c, logits are
    c · tanh(h Wᵀ / c) (Gemma 2).

    Returns: the sum, differentiable; and the nats of each row (N,), 0 where the target is −100,
        which carry no gradient: one pass can only make the gradient of one sum. Both float32
        (float64 from float64).
    """
    device = hidden_ND.device.type
    dtype = hidden_ND.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    # Asked here: within a Function, inputs say that they need gradients under no_grad, too.
    wanted = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _LinearCrossEntropy.apply(
        hidden_ND.to(dtype), weight_VD, targets_N, wanted, softcap, z_loss
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        wanted: bool,
        softcap: float | None,
        z_loss: float,
    ) -> tuple[Tensor, Tensor]:
        n, vocab = hidden_ND.shape[0], weight_VD.shape[0]
        # At most 8192 rows, for float16 to hold the weight's gradient of one chunk.
        rows = min(8192, max(32, _CHUNK_NUMBERS // vocab))
        rows -= rows % _TILE if rows > _TILE else 0
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        nats_N = torch.zeros(n, dtype=exact, device=hidden_ND.device)
        squares = nats_N.new_zeros(())
        ctx.weight_dtype = weight_VD.dtype
        # The cast of the weight stands inside, so that its gradient leaves in float32: summed over
        # many tokens it would lose bits in bfloat16 and overflow in float16.
        weight_VD = weight_VD.to(hidden_ND.dtype)
        if wanted:
            d_hidden_ND = torch.empty_like(hidden_ND)
            d_weight_VD = torch.zeros_like(weight_VD, dtype=exact)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                hidden_CD, targets_C = hidden_ND[part], targets_N[part]
                counts_C1 = (targets_C != IGNORED).unsqueeze(1)
                index_C1 = targets_C.where(counts_C1.squeeze(1), 0).unsqueeze(1)
                logits_CV = (hidden_CD @ weight_VD.T).to(exact)
                if softcap is not None:
                    tanh_CV = logits_CV.div_(softcap).tanh_()
                    logits_CV = softcap * tanh_CV
                # Of one kernel that reads each number once; the normaliser from the largest share.
                share_CV = logits_CV.softmax(1)
                log_z_C1 = logits_CV.amax(1, keepdim=True) - share_CV.amax(1, keepdim=True).log()
                nats_C1 = (log_z_C1 - logits_CV.gather(1, index_C1)) * counts_C1
                nats_N[part] = nats_C1.squeeze(1)
                if z_loss:
                    squares += (log_z_C1.square() * counts_C1).sum()
                if wanted:
                    # d nats / d logits = softmax − onehot(target), d log² Z = 2 log Z · softmax
                    d_logits_CV = share_CV.mul_(1 + 2 * z_loss * log_z_C1) if z_loss else share_CV
                    d_logits_CV.scatter_add_(1, index_C1, -torch.ones_like(nats_C1))
                    if softcap is not None:
                        d_logits_CV *= 1 - tanh_CV.square_()
                    d_logits_CV = d_logits_CV.to(weight_VD.dtype)
                    # Rows that do not count are taken out here, where a row is D numbers and not V.
                    torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[part])
                    d_hidden_ND[part] *= counts_C1
                    counted_CD = hidden_CD * counts_C1
                    if exact is weight_VD.dtype:
                        d_weight_VD.addmm_(d_logits_CV.T, counted_CD)
                    else:
                        d_weight_VD += d_logits_CV.T @ counted_CD
        if wanted:
            ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        ctx.mark_non_differentiable(nats_N)
        return nats_N.sum() + z_loss * squares, nats_N

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor, d_nats_N: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        # The factor (1 / tokens of the step, say) is not rounded to the type of the products.
        scaled_ND = d_hidden_ND.to(d_sum.dtype) * d_sum
        scaled_VD = d_weight_VD * d_sum
        found = scaled_ND.to(d_hidden_ND.dtype), scaled_VD.to(ctx.weight_dtype)
        return *found, None, None, None, None


def soft_capped(logits: Tensor, softcap: float | None) -> Tensor:
    """c · tanh(logits / c), or the logits themselves where there is no c."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plain_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float | None = None
) -> Tensor:
    """Each row's nats in one piece, N·V logits at once: the judge of `linear_cross_entropy`.

    Differentiable, (N,) float32 or float64.
    """
    logits_NV = F.linear(hidden_ND, weight_VD)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    logits_NV = soft_capped(logits_NV, softcap)
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")
