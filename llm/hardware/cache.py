"""Where what a machine has learnt about itself is kept from run to run."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """MY_SIMPLE_LLM_CACHE, or my-simple-llm in the user's cache; it need not exist."""
    own = os.environ.get("MY_SIMPLE_LLM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "my-simple-llm"
