"""Where training starts from: the weights of a run, or of a folder of public format.

`model.init_from=FOLDER_OR_RUN` takes the architecture from there, too; what is typed beside it
must agree, but for what does not change the function that the weights compute, and for a longer
context.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.errors import Refused
from llm.hf.family import DENSE, TRAINING
from llm.hf.mapping import canonical
from llm.hf.special import ROPES
from llm.runs.resolve import RunPath, other_folder, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from llm.config.jobs import Job
    from llm.model.transformer import Transformer
    from llm.tokenizer.base import Tokenizer

#: Settings of training, which may differ from those of the start.
_FREE = {*TRAINING, "model.init_std"} - {"model.base_d_model"}
_CONTEXT = "model.max_seq_len"
_WHERE_EXPERTS = ("model.moe_every", "model.dense_first")
_TABLE = "position.weight"


@dataclass(frozen=True)
class Start:
    """Weights by our names, with the config and the vocabulary that they belong to."""

    path: Path
    nodes: dict[str, Any]  # `model` and `moe`
    weights: dict[str, "Tensor"]
    tokenizer: "Tokenizer | None"
    tokens: dict[int, bytes] | None  # of a tokenizer that is not ours

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights: a run and its export have the same."""
        from llm.hf.folder import checksum

        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(f"{name} {checksum(self.weights[name])}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def name(self) -> str:
        """For the run's id."""
        letters = (
            c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in self.path.name
        )
        return "from_" + "".join(letters).strip("._-")[:40]

    def agree(self, config: Mapping[str, Any]) -> None:
        """Refuse the first key of the architecture that differs from the start's."""
        mine, wanted = canonical(config), canonical(self.nodes)
        upcycled = mine.get("moe.init") == "upcycle" and wanted["moe._target_"] == DENSE
        for key in [*wanted, *(key for key in mine if key not in wanted)]:
            here, there = mine.get(key), wanted.get(key)
            if here == there or key in _FREE or self._may_differ(key, mine, wanted):
                continue
            if upcycled and (key.startswith("moe.") or key in _WHERE_EXPERTS):
                continue
            hint = ""
            if key == _CONTEXT:
                hint = "; learned positions cannot be extended"
            raise Refused(f"is {here}, and {self.path} has {there}{hint}", key)

    def _may_differ(self, key: str, mine: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        if key == _CONTEXT:
            return _TABLE not in self.weights or mine[key] < wanted[key]
        kinds = {flat["model.position._target_"] for flat in (mine, wanted)}
        scaled = key.startswith("model.position.") and key != "model.position.base"
        return scaled and kinds <= {target for target, _ in ROPES.values()}

    def check_vocabulary(self, tokenizer: "Tokenizer") -> None:
        """Refuse a tokenizer that gives ids another meaning than the weights learned."""
        n_ids = self.weights["embedding"].shape[0]
        remedy = f"take the tokenizer that {self.path} was trained with"
        if tokenizer.vocab_size != n_ids:
            raise Refused(
                f"has {tokenizer.vocab_size} ids, and the weights {n_ids}; {remedy}", "tokenizer"
            )
        for token in range(n_ids):
            here, there = tokenizer.token_bytes(token), self._bytes_of(token)
            if there is not None and here != there:
                difference = f"id {token} is {here!r}, and there it is {there!r}"
                raise Refused(f"{difference}; {remedy}", "tokenizer")

    def _bytes_of(self, token: int) -> bytes | None:
        """What an id stands for, None where it is special or not known."""
        if self.tokenizer is not None:
            return self.tokenizer.token_bytes(token)
        return None if self.tokens is None else self.tokens.get(token)

    def fill(self, model: "Transformer") -> None:
        """Copy the weights; of a table of positions, as many as there are.

        With `moe.init=upcycle` the experts are copies of the start's feed-forward parts.
        """
        weights = dict(self.weights)
        if model.config["moe"].get("init") == "upcycle" and self.nodes["moe"]["_target_"] == DENSE:
            from llm.moe.upcycle import upcycle

            weights = upcycle(weights, model)
        if _TABLE in weights:
            weights[_TABLE] = weights[_TABLE][: model.get_parameter(_TABLE).shape[0]]
        model.load_state_dict(weights)


def begin_from(job: "Job") -> tuple["Job", Start | None]:
    """The job with the architecture that `model.init_from` brings, and the weights; or as it was.

    Raises:
        Refused: the folder cannot be opened, or what was typed contradicts it
    """
    typed = job.config["model"].get("init_from")
    if typed is None:
        return job, None
    start = open_start(typed, Path(job.config["outputs"]), job.config["plugins"])
    job = job.starting_from(start.nodes)
    start.agree(job.config)
    return job, start


def open_start(typed: str, outputs: Path, plugins: list[str]) -> Start:
    """What `model.init_from` names: a folder of public format, a run (its id), or a checkpoint.

    Of a run, the best weights, as for `llm.chat`; RUN/checkpoints names the newest.

    Raises:
        Refused: there is neither, or it cannot be opened
    """
    folder = other_folder(typed)
    try:
        start = _public(folder) if folder else _run(resolve(typed, outputs), plugins)
    except Refused as refusal:
        raise Refused(str(refusal), "model.init_from") from None
    start.nodes["model"] = {**start.nodes["model"], "init_from": typed}
    return start


def _public(path: Path) -> Start:
    from llm.hf.interchange import load, load_tokenizer

    model = load(path)
    tokenizer = load_tokenizer(path)
    tokens = None if tokenizer else _listed_tokens(path)
    return Start(path, model.config, model.state_dict(), tokenizer, tokens)


def _listed_tokens(path: Path) -> dict[int, bytes] | None:
    """What tokenizer.json says each id stands for, special ids left out; None without one."""
    from llm.hf.folder import read_json
    from llm.hf.tokenizer_json import as_bytes

    if not (path / "tokenizer.json").exists():
        return None
    content = read_json(path / "tokenizer.json")
    try:
        special = {added["id"] for added in content.get("added_tokens") or []}
        vocabulary = content["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # of a Unigram model: pairs of text and score
            vocabulary = {text: token for token, (text, _) in enumerate(vocabulary)}
        return {token: as_bytes(text) for text, token in vocabulary.items() if token not in special}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(f"{path / 'tokenizer.json'} is no vocabulary") from None


def _run(named: RunPath, plugins: list[str]) -> Start:
    from llm.runs.reopen import load_run

    run = load_run(named, which="best", plugins=plugins)
    nodes = {room: run.config[room] for room in ("model", "moe")}
    return Start(named.folder, nodes, run.model.state_dict(), run.tokenizer, None)
