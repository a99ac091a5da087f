"""The nearest valid name to one that was mistyped."""

from collections.abc import Iterable
from difflib import SequenceMatcher

#: What other trainers call the same thing, by the name that is used here.
OTHER_NAMES = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "min_lr": "final",
    "n_embd": "d_model",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "n_layer": "n_layers",
    "num_hidden_layers": "n_layers",
    "n_head": "n_heads",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "block_size": "max_seq_len",
    "context_length": "max_seq_len",
    "seq_len": "max_seq_len",
    "num_experts": "n_experts",
    "num_experts_per_tok": "top_k",
    "use_moe": "moe",
    "gradient_accumulation_steps": "grad_accum_steps",
    "per_device_train_batch_size": "batch_size",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "max_iters": "budget",
    "max_steps": "budget",
    "num_train_epochs": "budget",
    "epochs": "budget",
    "warmup_iters": "warmup",
    "beta1": "betas",
    "beta2": "betas",
    "eval_interval": "eval_every",
    "eval_iters": "eval_tokens",
    "save_steps": "checkpoint_every",
    "dtype": "precision",
    "rope_theta": "base",
    "data_dir": "path",
    "out_dir": "outputs",
    "dataset": "data",
}


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` most likely meant, or None where none is near.

    Dotted names are compared as a whole and by their last part, so that a key in the wrong
    section (`model.lr`) finds its own (`optimizer.lr`).
    """
    section, _, leaf = name.rpartition(".")
    leaf = OTHER_NAMES.get(leaf, leaf)
    best, best_score = None, 0.0
    for candidate in candidates:
        candidate_section, _, candidate_leaf = candidate.rpartition(".")
        whole = _alike(f"{section}.{leaf}" if section else leaf, candidate)
        score = max(
            whole * 0.98, _alike(leaf, candidate_leaf) * _section_weight(section, candidate_section)
        )
        if score > best_score:
            best, best_score = candidate, score
    return best if best_score >= 0.6 else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean NEAREST?`, empty where nothing is near."""
    guess = nearest(name, candidates)
    return f"; did you mean {guess}?" if guess else ""


def _section_weight(typed: str, candidate: str) -> float:
    if typed == candidate:
        return 1.0
    if not typed:
        return 0.88  # a top-level name, such as a group's, is likelier meant
    return 0.97 if _alike(typed, candidate) > 0.7 else 0.93  # the section is misspelt, too


def _alike(a: str, b: str) -> float:
    """From 0 to 1: the mean of what two measures say, since each has its blind spot.

    Common substrings forgive an ending too many (`warmup_steps`), edits forgive two letters that
    changed places (`modle`).
    """
    a, b = a.lower(), b.lower()
    if a == b:
        return 1.0
    common = SequenceMatcher(None, a, b, autojunk=False).ratio()
    return (common + 1 - _edits(a, b) / max(len(a), len(b))) / 2


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete, change or swap with their neighbour to make `b` of `a`."""
    before, last = list[int](), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
