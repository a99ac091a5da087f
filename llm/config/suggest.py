"""The nearest valid name to one that was mistyped."""

from collections.abc import Iterable
from difflib import SequenceMatcher

#: What other trainers call the same thing, by the name that is used here.
OTHER_NAMES = {
    "learning_rate": "lr",
    "max_lr": "lr",
    "n_embd": "d_model",
    "hidden_size": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "block_size": "max_seq_len",
    "context_length": "max_seq_len",
    "seq_len": "max_seq_len",
    "num_experts": "n_experts",
    "gradient_accumulation_steps": "grad_accum_steps",
    "max_iters": "budget",
    "max_steps": "budget",
    "epochs": "budget",
    "eval_interval": "eval_every",
    "data_dir": "path",
    "dataset": "data",
}


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()


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
        own_section = 1.0 if section == candidate_section else 0.93
        if section and section != candidate_section and _alike(section, candidate_section) > 0.7:
            own_section = 0.97  # the section is misspelt, too
        score = max(whole * 0.98, _alike(leaf, candidate_leaf) * own_section)
        if score > best_score:
            best, best_score = candidate, score
    return best if best_score >= 0.6 else None
