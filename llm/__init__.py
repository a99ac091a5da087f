"""My Simple LLM: an experiment platform for small language models, dense and Mixture-of-Experts."""

from typing import Any

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    # Late: `python -m llm.train --help` imports this package, and must not import torch.
    if name == "load_run":
        from llm.runs.reopen import load_run

        return load_run
    raise AttributeError(f"module 'llm' has no attribute {name!r}")
