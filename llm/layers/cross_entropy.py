"""The output head and its cross-entropy, without ever holding all logits.

N tokens (B·T), D model width, V vocabulary, C rows of one chunk
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Logits of one chunk, at most: 128 MiB in float32. A GPU takes more, since the gradient of the
#: weight is read and written once a chunk.
_CHUNK_NUMBERS = {"cpu": 2**25, "cuda": 2**26}
#: Rows of a chunk are a multiple of this where there are so many: what the products' tiles like.
_TILE = 256
#: A GPU's products want rows of whole 128 bytes: there the vocabulary is filled up to a multiple.
_FILLED = {"cpu": 1, "cuda": 64}
IGNORED = -100


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    softcap: float | None = None,
    z_loss: float = 0.0,
    terms: "Terms | None" = None,
) -> tuple[Tensor, Tensor]:
    """Σ −log softmax(h Wᵀ)[target] in nats over the rows whose target is not −100.

    With `z_loss`, log² Z of each such row is added to the sum so many times, where log Z is the
    softmax's normaliser: that keeps the logits from drifting (PaLM, Chowdhery et al. 2022, §5).

    Logits exist for one chunk of rows at a time, in float32; where gradients are wanted they are
    formed in the same pass, so that nothing is computed twice: 6·N·D·V operations, as for the
    plain version, with C·V instead of N·V float32 numbers. Under autocast the products run in the
    autocast type; the weight's gradient is summed in float32. With `softcap` c, logits are
    c · tanh(h Wᵀ / c) (Gemma 2).

    Args:
        terms: `chunk_terms` or a translation of it by torch.compile
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
        hidden_ND.to(dtype), weight_VD, targets_N, wanted, softcap, z_loss, terms or chunk_terms
    )


def chunk_rows(vocab: int, device: str) -> int:
    """Rows of one chunk: at most 8192, for float16 to hold the gradient of the weight."""
    rows = min(8192, max(32, _CHUNK_NUMBERS.get(device, 2**25) // vocab))
    return rows - rows % _TILE if rows > _TILE else rows


def chunk_terms(
    logits_CV: Tensor,
    targets_C: Tensor,
    vocab: int,
    wanted: bool,
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is between the products: a pure function of the products' logits.

    Args:
        vocab: columns behind so many belong to no token
        wanted: whether gradients are
    Returns: the nats of each row, 0 where the target is −100; Σ log² Z; and, where wanted, the
        gradient of Σ nats + `z_loss` · Σ log² Z by the logits, in their type. Its rows whose
        target is −100 are anything
    """
    exact = torch.promote_types(logits_CV.dtype, torch.float32)
    counts_C1 = (targets_C != IGNORED).unsqueeze(1)
    index_C1 = targets_C.where(counts_C1.squeeze(1), 0).unsqueeze(1)
    capped_CV = logits_CV.to(exact)
    if softcap is not None:
        tanh_CV = (capped_CV / softcap).tanh()
        capped_CV = softcap * tanh_CV
    if vocab < logits_CV.shape[1]:
        capped_CV[:, vocab:] = -torch.inf
    # One kernel that reads each number once; the normaliser follows from the largest share.
    share_CV = capped_CV.softmax(1)
    log_z_C1 = capped_CV.amax(1, keepdim=True) - share_CV.amax(1, keepdim=True).log()
    nats_C1 = (log_z_C1 - capped_CV.gather(1, index_C1)) * counts_C1
    squares = (log_z_C1.square() * counts_C1).sum()
    if not wanted:
        return nats_C1.squeeze(1), squares, None
    # d nats / d logits = softmax − onehot(target), d log² Z = 2 log Z · softmax
    d_logits_CV = share_CV.mul_(1 + 2 * z_loss * log_z_C1) if z_loss else share_CV
    d_logits_CV.scatter_add_(1, index_C1, -torch.ones_like(nats_C1))
    if softcap is not None:
        d_logits_CV *= 1 - tanh_CV.square()
    return nats_C1.squeeze(1), squares, d_logits_CV.to(logits_CV.dtype)


Terms = Callable[
    [Tensor, Tensor, int, bool, float | None, float], tuple[Tensor, Tensor, Tensor | None]
]


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
        terms: Terms,
    ) -> tuple[Tensor, Tensor]:
        n, vocab, device = hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.device.type
        rows = chunk_rows(vocab, device)
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        nats_N = torch.zeros(n, dtype=exact, device=hidden_ND.device)
        squares = nats_N.new_zeros(())
        ctx.weight_dtype = weight_VD.dtype
        # The cast of the weight stands inside, so that its gradient leaves in float32: summed over
        # many tokens it would lose bits in bfloat16 and overflow in float16.
        weight_VD = weight_VD.to(hidden_ND.dtype)
        weight_VD = F.pad(weight_VD, (0, 0, 0, -vocab % _FILLED.get(device, 1)))
        if wanted:
            d_hidden_ND = torch.empty_like(hidden_ND)
            d_weight_VD = torch.zeros_like(weight_VD, dtype=exact)
        with torch.autocast(device, enabled=False):
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                hidden_CD, targets_C = hidden_ND[part], targets_N[part]
                nats_N[part], more, d_logits_CV = terms(
                    hidden_CD @ weight_VD.T, targets_C, vocab, wanted, softcap, z_loss
                )
                squares += more
                if d_logits_CV is None:
                    continue
                # Rows that do not count are taken out here, where a row is D numbers and not V.
                counts_C1 = (targets_C != IGNORED).unsqueeze(1)
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[part])
                d_hidden_ND[part] *= counts_C1
                counted_CD = hidden_CD * counts_C1
                if exact is weight_VD.dtype:
                    torch.addmm(d_weight_VD, d_logits_CV.T, counted_CD, out=d_weight_VD)
                else:
                    d_weight_VD += d_logits_CV.T @ counted_CD
        if wanted:
            ctx.save_for_backward(d_hidden_ND, d_weight_VD[:vocab])
        ctx.mark_non_differentiable(nats_N)
        return nats_N.sum() + z_loss * squares if z_loss else nats_N.sum(), nats_N

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor, d_nats_N: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        # The factor (1 / tokens of the step, say) is not rounded to the type of the products.
        scaled_ND = d_hidden_ND.to(d_sum.dtype) * d_sum
        scaled_VD = d_weight_VD * d_sum
        found = scaled_ND.to(d_hidden_ND.dtype), scaled_VD.to(ctx.weight_dtype)
        return *found, None, None, None, None, None


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
