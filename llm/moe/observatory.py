"""What the experts of each layer were given: figures from the choices that routers made.

L layers with experts, E experts, M tokens, K experts a token, G groups of tokens (skills, classes)
"""

import numpy as np


def taken_by(choices_LMK: np.ndarray, group_M: np.ndarray, groups: int, experts: int) -> np.ndarray:
    """How many of each group's choices went to each expert of each layer: (L, G, E) int64.

    A choice outside 0 … E − 1 stands for none (a token that nobody took).
    """
    taken_LGE = np.zeros((len(choices_LMK), groups, experts), np.int64)
    group_MK = np.broadcast_to(group_M[:, None].astype(np.int64), choices_LMK.shape[1:])
    for taken_GE, choices_MK in zip(taken_LGE, choices_LMK, strict=True):
        made = (choices_MK >= 0) & (choices_MK < experts)
        pairs = group_MK[made] * experts + choices_MK[made]
        taken_GE[:] = np.bincount(pairs, minlength=groups * experts).reshape(groups, experts)
    return taken_LGE


def max_violation(load_LE: np.ndarray) -> np.ndarray:
    """MaxVio of each layer: (largest − mean) / mean (Wang et al. 2024, loss-free balancing)."""
    mean_L1 = np.maximum(load_LE.mean(1, keepdims=True), 1e-12)
    return (load_LE / mean_L1).max(1) - 1


def agreement(before_LMK: np.ndarray, now_LMK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far two examinations of the same tokens chose the same experts.

    Returns: of each layer, the share of tokens whose first expert stayed, and the share of all
        choices that were among their token's K before: both (L,)
    """
    first_L = (before_LMK[..., 0] == now_LMK[..., 0]).mean(1)
    all_L = []
    for before_MK, now_MK in zip(before_LMK, now_LMK, strict=True):
        made_MK = now_MK >= 0
        stayed_MK = (now_MK[:, :, None] == before_MK[:, None, :]).any(2) & made_MK
        all_L.append(stayed_MK.sum() / max(made_MK.sum(), 1))
    return first_L, np.array(all_L)


def information(taken_LGE: np.ndarray) -> np.ndarray:
    """Bits that the chosen expert tells about a token's group, of each layer: (L,).

    Mutual information of group and expert: 0 where each expert gets the same mixture.
    """
    return terms(taken_LGE).sum((1, 2))


def terms(taken_LGE: np.ndarray) -> np.ndarray:
    """What each pair of group and expert adds to the information: p(g, e) log₂ p(g, e)/p(g)p(e)."""
    p_LGE = taken_LGE / np.maximum(taken_LGE.sum((1, 2), keepdims=True), 1)
    apart_LGE = p_LGE.sum(2, keepdims=True) * p_LGE.sum(1, keepdims=True)
    ratio_LGE = np.divide(p_LGE, apart_LGE, out=np.ones_like(p_LGE), where=p_LGE > 0)
    return p_LGE * np.log2(ratio_LGE)
