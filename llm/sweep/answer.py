"""Which run answers a job, without starting it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.config.validate import Validated
from llm.runs.identity import identify


class Answers:
    """Run ids of validated configs; what many of them share is found out once.

    Args:
        machine_facts: of a `hardware` node, what `auto` becomes here; None where that is unknown
    """

    def __init__(self, machine_facts: Callable[[dict[str, Any]], dict[str, Any] | None]):
        self.machine_facts = machine_facts
        self._fingerprints: dict[str, str | None] = {}

    def run_id(self, validated: Validated) -> str | None:
        """The id, None where only the job itself can find out (a corpus behind the network)."""
        data = self.fingerprint(validated.config)
        facts = self.machine_facts(validated.config["hardware"])
        if data is None or facts is None:
            return None
        return identify(validated.chosen, validated.identity, facts, data)[0]

    def fingerprint(self, config: dict[str, Any]) -> str | None:
        """Of the prepared data; reads the text where the corpus is the user's own."""
        key = json.dumps([config["data"], config["tokenizer"]], sort_keys=True)
        if key not in self._fingerprints:
            self._fingerprints[key] = _fingerprint(config)
        return self._fingerprints[key]

    def prepared(self, validated: Validated) -> dict[str, Any]:
        """The manifest of the prepared corpus, empty where it is not prepared yet."""
        config, chosen = validated.config, validated.chosen
        mark = self.fingerprint(config)
        name = f"{chosen['data']}-{chosen['tokenizer']}-{mark}"
        try:
            text = (Path(config["outputs"]) / "data" / name / "manifest.json").read_text()
            manifest: dict[str, Any] = json.loads(text)
        except (OSError, ValueError):
            return {}
        return manifest


def _fingerprint(config: dict[str, Any]) -> str | None:
    from llm.data.prepare import fingerprint

    try:
        corpus = instantiate(config["data"], "data", config["plugins"])
        return fingerprint(corpus, config["tokenizer"])
    except (Refused, OSError, RuntimeError, ImportError):
        return None


def resolved_here(node: dict[str, Any]) -> dict[str, Any] | None:
    """Machine facts of a hardware node, asked of PyTorch; None where the device is not there."""
    try:
        facts: dict[str, Any] = instantiate(node, "hardware").resolve().facts()
    except Refused:
        return None
    return facts
