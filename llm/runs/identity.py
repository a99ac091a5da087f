"""What makes two runs the same run, and what made a run."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm.config.root import Budget

_PACKAGE = Path(__file__).parent.parent

#: Raised whenever the numbers of a run may change for an equal config. It is in run.json, and not
#: in the id; reports never pool runs of different versions.
RESULT_VERSION = 2
#: Classes that were renamed or moved: today's dotted name to the one that enters the hash.
FORMER_NAMES: dict[str, str] = {}
#: Keys that came later, with the value that means "as before", which is left out of the hash:
#: "llm.room.module.Class.key" with the class as it enters the hash, or "train.key" in a section.
AS_BEFORE: dict[str, Any] = {
    "objective": {"_target_": "llm.objective.pretrain.Pretrain"},
    "llm.model.transformer.Transformer.attention": {"_target_": "llm.model.attention.Attention"},
}


def canonical(config: Any, path: str = "") -> Any:
    """A config, or its part that can change a result, by its former names and keys.

    What is hashed, and what comparisons of configs look at.
    """
    if isinstance(config, list):
        return [canonical(item) for item in config]
    if not isinstance(config, dict):
        return config
    target = config.get("_target_")
    owner = FORMER_NAMES.get(target, target) if isinstance(target, str) else path
    found = {}
    for key, value in config.items():
        place = f"{path}.{key}" if path else key
        value = owner if key == "_target_" else canonical(value, place)
        if place == "train.budget":  # old runs have it as it was typed
            value = Budget.parse(value).spelling
        later = (AS_BEFORE.get(name, ...) for name in (f"{owner}.{key}".lstrip("."), place))
        if value not in later:
            found[key] = value
    return found


def current(config: Any) -> Any:
    """A run's config with the names that its classes have today."""
    if isinstance(config, list):
        return [current(item) for item in config]
    if not isinstance(config, dict):
        return config
    today = {former: name for name, former in FORMER_NAMES.items()}
    return {k: today.get(v, v) if k == "_target_" else current(v) for k, v in config.items()}


def config_hash(identity: dict[str, Any]) -> str:
    """A hash of what can change a result: independent of the order of keys."""
    text = json.dumps(canonical(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_id(stem: list[str], identity: dict[str, Any], data_fingerprint: str) -> str:
    """A readable stem and ten digits of the hash of the canonical config and of the data."""
    facts = f"{config_hash(identity)} {data_fingerprint}"
    return "-".join([*stem, hashlib.sha256(facts.encode()).hexdigest()[:10]])


def identify(
    chosen: dict[str, str],
    identity: dict[str, Any],
    machine_facts: dict[str, Any],
    data_fingerprint: str,
    start: tuple[str, str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """A run's id and its whole identity: the one place that training and planning ask.

    Args:
        chosen: group to option
        identity: of the validated config
        machine_facts: what `auto` became on this machine
        start: name and fingerprint of the weights that `model.init_from` brings
    """
    whole = {**identity, "hardware": machine_facts}
    stem = [chosen["model"], chosen["moe"]] if start is None else [start[0]]
    if start is not None:
        whole["init_from"] = start[1]
    stem.append(chosen["data"])
    return run_id(stem, whole, data_fingerprint), whole


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result may depend on."""
    found = {"python": platform.python_version(), "system": platform.system().lower()}
    for package in ("torch", "numpy", "tiktoken", "hydra-core", "my-simple-llm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, str]:
    """The commit of the checkout and a hash of what differs from it; empty without git.

    A sweep's snapshot of the code says it itself, in `snapshot.json` beside the package.
    """
    frozen = _PACKAGE.parent / "snapshot.json"
    if frozen.exists():
        told: dict[str, str] = json.loads(frozen.read_text())["git"]
        return told

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        commit = ask("rev-parse", "HEAD").strip()
        difference = ask("diff", "HEAD", "--", str(_PACKAGE))
    except (OSError, subprocess.SubprocessError):
        return {}
    state = {"git_commit": commit}
    if difference:
        state["git_diff_hash"] = hashlib.sha256(difference.encode()).hexdigest()[:16]
    return state
