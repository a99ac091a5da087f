"""Which run answers a job, without starting it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.config.validate import Validated
from llm.runs.arms import content, texts
from llm.runs.directory import folder_of
from llm.runs.identity import RESULT_VERSION, canonical, identify
from llm.runs.labels import Content, mark


class Data(NamedTuple):
    """What is known of a job's data before it is prepared."""

    fingerprint: str
    folders: list[Path]  # of the prepared corpus, or of a mixture's parts; they may be missing


class Answers:
    """Run ids of validated configs; what many of them share is found out once."""

    def __init__(self) -> None:
        self._data: dict[str, Data | None] = {}
        self._ids: dict[tuple[str, str], str] = {}

    def run_id(self, validated: Validated) -> str | None:
        """The id, None where only the job itself can find out.

        So it is with a corpus behind the network, a vocabulary that a mixture's texts have still
        to give, and weights to start from.
        """
        if validated.config["model"].get("init_from") is not None:
            return None
        data = self.data(validated)
        facts = resolved_here(validated.config["hardware"])
        if data is None or facts is None:
            return None
        name, _ = identify(validated.chosen, validated.identity, facts, data.fingerprint)
        outputs = validated.config["outputs"]
        key = outputs, name.rpartition("-")[2]
        if key not in self._ids:
            # Two spellings of one config, of which neither has run: the first names both.
            self._ids[key] = folder_of(Path(outputs) / "runs", name).name
        return self._ids[key]

    def content(
        self, validated: Validated, machine: dict[str, Any]
    ) -> tuple[Content, frozenset[str]]:
        """All that can change the job's result (`llm.runs.arms`), and marks of its text."""
        data = self.data(validated)
        start = validated.config["model"].get("init_from")
        facts = {**machine, "data_fingerprint": data and data.fingerprint, "init_from": start}
        facts["result_version"] = RESULT_VERSION
        node = f"data: {mark(validated.config['data'])}"  # read now, equal nodes have equal text
        return content(canonical(validated.identity), facts), texts(facts) | {node}

    def data(self, validated: Validated) -> Data | None:
        """Reads the text where the corpus is the user's own and was not read before."""
        config, chosen = validated.config, validated.chosen
        names = (chosen["data"], chosen["tokenizer"])
        nodes = [config["data"], config["tokenizer"], names, config["outputs"]]
        key = json.dumps(nodes, sort_keys=True)
        if key not in self._data:
            try:
                self._data[key] = _data(config, *names)
            except (Refused, OSError, RuntimeError, ImportError):
                self._data[key] = None
        return self._data[key]

    def prepared(self, validated: Validated) -> dict[str, Any]:
        """`vocab_size` and the targets of each split, summed over a mixture's parts: those of
        `train` over the parts that have a weight.

        Empty where the data are not prepared yet.
        """
        data = self.data(validated)
        try:
            manifests = [json.loads((f / "manifest.json").read_bytes()) for f in data.folders]  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            return {}
        # What begins and ends with an end-of-text has one target less than tokens.
        sizes = [
            [manifest["splits"][split]["tokens"] - 1 for split in ("train", "val")]
            for manifest in manifests
        ]
        parts = validated.config["data"].get("parts", {"": {"weight": 1}})
        weights = [part["weight"] for _, part in sorted(parts.items()) if part is not None]
        train = sum(n for (n, _), weight in zip(sizes, weights, strict=True) if weight)
        vocab_size = manifests[0]["vocab_size"]
        return {"vocab_size": vocab_size, "train": train, "val": sum(n for _, n in sizes)}


def _data(config: dict[str, Any], corpus_name: str, tokenizer_name: str) -> Data | None:
    from llm.data import checksums
    from llm.data.mixture import Mixture, fingerprint_of, fingerprints
    from llm.data.prepare import fingerprint

    root, node = Path(config["outputs"]) / "data", canonical(config["tokenizer"], "tokenizer")
    corpus = instantiate(config["data"], "data", config["plugins"])
    with checksums.remembering(root / ".checksums.json"):
        if not isinstance(corpus, Mixture):
            mark = fingerprint(corpus, node)
            return Data(mark, [root / f"{corpus_name}-{tokenizer_name}-{mark}"])
        tokenizer = instantiate(config["tokenizer"], "tokenizer", config["plugins"])
        parts = fingerprints(corpus, tokenizer, node, tokenizer_name, root)
    if parts is None:
        return None
    folders = [root / f"{name}-{tokenizer_name}-{mark}" for name, mark in parts.items()]
    return Data(fingerprint_of(parts), folders)


def resolved_here(node: dict[str, Any]) -> dict[str, Any] | None:
    """Machine facts of a hardware node, asked of PyTorch; None where the device is not there."""
    try:
        facts: dict[str, Any] = instantiate(node, "hardware").resolve().facts()
    except Refused:
        return None
    return facts
