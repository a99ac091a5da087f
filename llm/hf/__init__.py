"""Public checkpoints in and out: folders as `transformers` reads and writes them."""

from typing import Any

__all__ = ["load", "load_reading", "load_tokenizer", "save"]


def __getattr__(name: str) -> Any:
    # Late: the command line asks this package for tables before it needs torch.
    if name in __all__:
        from llm.hf import interchange

        return getattr(interchange, name)
    raise AttributeError(f"module 'llm.hf' has no attribute {name!r}")
