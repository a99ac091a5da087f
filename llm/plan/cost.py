"""Parameters and operations of a job, found by building its model without memory.

The constructors themselves are asked, so that there is no second account to keep in step with
them. `llm.plan` has no PyTorch and builds with a stand-in that knows shapes only.
"""

import json
from typing import Any

from llm.config.errors import Refused
from llm.config.instantiate import instantiate

#: Ids of a vocabulary that is fitted to text which has not been read yet.
_GUESS = 256


class Costs:
    """Accounts of configs; models that many jobs share are built once."""

    def __init__(self) -> None:
        self._accounts: dict[str, Any] = {}
        self._vocabularies: dict[str, tuple[int, bool]] = {}

    def account(self, config: dict[str, Any], vocab_size: int) -> Any:
        """`params_total`, `params_active`, `flops_per_token`; None where only the job can tell.

        So it is where weights to start from bring the architecture, and where a constructor needs
        more of its tensors than the stand-in has. Raises Refused where a constructor does.
        """
        from llm.build import account_for, build_model

        key = json.dumps([config["model"], config["moe"], vocab_size], sort_keys=True)
        if config["model"].get("init_from") is not None:
            return None
        if key not in self._accounts:
            try:
                model = build_model(config, vocab_size, config["plugins"], device="meta")
                self._accounts[key] = account_for(config, model)
            except Refused:
                raise
            except Exception:  # also with PyTorch: too large for a tensor; the job will say it
                self._accounts[key] = None
        return self._accounts[key]

    def vocabulary(self, config: dict[str, Any], manifest: dict[str, Any]) -> tuple[int, bool]:
        """Its size, and whether that is known: prepared, fixed, or of a corpus with known words.

        Args:
            manifest: of the prepared data, empty where they are not prepared yet
        """
        if manifest:
            return manifest["vocab_size"], True
        key = json.dumps([config["data"], config["tokenizer"]], sort_keys=True)
        if key not in self._vocabularies:
            self._vocabularies[key] = _vocabulary(config)
        return self._vocabularies[key]


def _vocabulary(config: dict[str, Any]) -> tuple[int, bool]:
    plugins = config["plugins"]
    try:
        tokenizer = instantiate(config["tokenizer"], "tokenizer", plugins)
        if tokenizer.needs_fit:
            corpus = instantiate(config["data"], "data", plugins)
            if corpus.pieces is None:
                return _guess(config["tokenizer"]), False
            tokenizer.fit((), corpus.pieces)
        return tokenizer.vocab_size, True
    except Exception:  # a mixture's, or one that has to be downloaded: the job will tell
        return _guess(config["tokenizer"]), False


def _guess(node: dict[str, Any]) -> int:
    """The size that was asked for."""
    return int(node.get("vocab_size") or node.get("max_vocab_size") or _GUESS)
