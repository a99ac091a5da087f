"""The output head and its cross-entropy, without ever holding all logits.

N tokens (B·T), D model width, V vocabulary, C rows of one chunk
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Logits of one chunk: 2^24 float32, 64 MiB.
_CHUNK_NUMBERS = 2**24
IGNORED = -100


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """−log softmax(h Wᵀ)[target] in nats for each row, 0 where the target is −100.

    Logits exist for one chunk of rows at a time, in float32; where gradients are wanted they are
    formed in the same pass, so that nothing is computed twice: 6·N·D·V operations, as for the
    plain version, with C·V instead of N·V float32 numbers. Under autocast the products run in the
    autocast type.

    Returns: (N,) float32. The gradient that reaches it must be the same number in every row whose
        target counts, as it is for a sum or a mean.
    """
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        n, vocab = hidden_ND.shape[0], weight_VD.shape[0]
        rows = max(32, _CHUNK_NUMBERS // vocab)
        nats_N = torch.zeros(n, dtype=torch.float32, device=hidden_ND.device)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if wanted:
            d_hidden_ND = torch.empty_like(hidden_ND)
            d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                hidden_CD, targets_C = hidden_ND[part], targets_N[part]
                counts_C1 = (targets_C != IGNORED).unsqueeze(1)
                index_C1 = targets_C.clamp_min(0).unsqueeze(1)
                logits_CV = (hidden_CD @ weight_VD.T).float()
                log_z_C1 = logits_CV.logsumexp(1, keepdim=True)
                nats_C1 = (log_z_C1 - logits_CV.gather(1, index_C1)) * counts_C1
                nats_N[part] = nats_C1.squeeze(1)
                if wanted:
                    # d nats / d logits = softmax − onehot(target)
                    d_logits_CV = logits_CV.sub_(log_z_C1).exp_().mul_(counts_C1)
                    d_logits_CV.scatter_add_(1, index_C1, -counts_C1.to(d_logits_CV.dtype))
                    d_logits_CV = d_logits_CV.to(weight_VD.dtype)
                    torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[part])
                    d_weight_VD += d_logits_CV.T @ hidden_CD
        if wanted:
            ctx.save_for_backward(d_hidden_ND, d_weight_VD.to(weight_VD.dtype), targets_N)
        return nats_N

    @staticmethod
    def backward(ctx, d_nats_N: Tensor):
        d_hidden_ND, d_weight_VD, targets_N = ctx.saved_tensors
        counted_N = targets_N != IGNORED
        # One number for all counted rows: their mean is exact, and 0 where nothing counts.
        scale = (d_nats_N * counted_N).sum() / counted_N.sum().clamp_min(1)
        return (
            d_hidden_ND * scale.to(d_hidden_ND.dtype),
            d_weight_VD * scale.to(d_weight_VD.dtype),
            None,
        )


def plain_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same in one piece, N·V logits at once: what `linear_cross_entropy` is held against."""
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")
