"""My Simple LLM: an experiment platform for small language models, dense and Mixture-of-Experts."""

import sys
from typing import Any

__all__ = ["__version__", "fit", "load_run"]

if sys.argv[:1] == ["-m"]:  # `python -m llm.NAME`, before its own imports
    from llm.config.environment import check

    check()


def __getattr__(name: str) -> Any:
    # Late: `python -m llm.train --help` imports this package, and must not import torch.
    if name == "load_run":
        from llm.runs.reopen import load_run

        return load_run
    if name == "fit":
        from llm.train import fit

        return fit
    if name == "__version__":
        from importlib.metadata import version

        return version("my-simple-llm")
    raise AttributeError(f"module 'llm' has no attribute {name!r}")
