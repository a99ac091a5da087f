"""Arms: runs and jobs that are equal in everything that can change a result, but for the seed.

What a run is goes by content and never by name: the whole recorded config, the data by their
fingerprint, the weights that training starts from, the version of the numbers. Reports, plans,
warnings and pruning group by the same `content`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm.config.choices import yaml_problem
from llm.config.errors import Refused
from llm.config.root import Experiment
from llm.config.schema import common_keys, dataclass_of, entry_of, locate, schema_of
from llm.runs.identity import canonical, current
from llm.runs.labels import FACTS, GROUPS, Content, flat, labels, mark

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json, and the config with the names that classes have today.

    Raises OSError or ValueError where they cannot be read.
    """
    facts = json.loads((folder / "run.json").read_bytes())
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    try:
        config = yaml.load(text, _LOADER)
    except yaml.YAMLError as error:
        raise ValueError(yaml_problem(error, folder / "config.yaml")) from None
    if not isinstance(facts, dict) or not isinstance(config, dict):
        raise ValueError(f"{folder}: run.json or config.yaml holds no mapping")
    return facts, current(config)


def read_content(folder: Path) -> tuple[Content, frozenset[str]]:
    """All that can change the result of the run in `folder`, and marks of its text.

    Raises OSError or ValueError as `read_run` does.
    """
    facts, config = read_run(folder)
    return content(recorded(config), facts), texts(facts)


def recorded(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's whole config that can change a result, by its former names."""
    found: dict[str, Any] = canonical(_recorded(config, Experiment))
    return found


def _recorded(value: Any, annotation: Any) -> Any:
    if not isinstance(value, dict):
        return value
    entry = entry_of(annotation)
    if entry is not None:
        return {name: _recorded(item, entry) for name, item in value.items()}
    try:
        schema = schema_of(dataclass_of(annotation) or locate(value.get("_target_")))
    except Refused:  # a plugin's class
        return value
    keys = {**schema.keys, **common_keys(annotation)}
    return {
        key: _recorded(item, keys[key].annotation) if key in keys else item
        for key, item in value.items()
        if key not in keys or keys[key].recorded
    }


def content(identity: Mapping[str, Any], facts: Mapping[str, Any]) -> Content:
    """All that can change a result, the seed included.

    Args:
        identity: the recorded part of the config
        facts: those of run.json: `device`, `precision`, `data_fingerprint`, `init_from` and
            `result_version`, as far as they are known
    """
    machine = {key: facts.get(key) for key in ("device", "precision")}
    beside = {"result_version": 1, **{key: facts[key] for key in FACTS if key in facts}}
    return flat({**identity, "hardware": machine, **beside})


def arm_of(content: Content) -> str:
    """The same for what differs in nothing but the seed."""
    return mark({key: value for key, value in content.items() if key != "seed"})


def texts(facts: Mapping[str, Any]) -> frozenset[str]:
    """Marks of the text that a run learns: where two runs share one, they are judged on one text.

    `data_fingerprint` depends on the tokenizer, too. `text_fingerprint` does not; old runs lack it.
    """
    marks = (facts.get("data_fingerprint"), facts.get("text_fingerprint"))
    return frozenset(mark for mark in marks if mark is not None)


def job_words(overrides: Iterable[str]) -> frozenset[str]:
    """What tells a job from those of other arms, but not from its dense partner."""
    return frozenset(o for o in overrides if o.partition("=")[0] not in ("seed", "compare"))


@dataclass(frozen=True)
class Entry:
    """A run or a job: what it is, and what it spends."""

    content: Content
    texts: frozenset[str] = frozenset()
    chosen: Mapping[str, str] = field(default_factory=dict)  # group to option, for labels
    tokens: float | None = None
    flops: float | None = None  # of the whole training
    params_active: float | None = None
    params_total: float | None = None
    compare: str | None = None  # what a dense partner has equal with its model with experts
    jobs: frozenset[frozenset[str]] = frozenset()  # `job_words` of each job that it answers

    @property
    def seed(self) -> int:
        return int(self.content.get("seed", 0))

    def reads_like(self, other: "Entry") -> bool:
        """Whether both are judged on one text, so that their losses compare."""
        return self.texts == other.texts or bool(self.texts & other.texts)

    @property
    def arm(self) -> str:
        return arm_of(self.content)


@dataclass(frozen=True)
class Arm:
    """Entries that are equal but for the seed."""

    label: str
    entries: list[Entry]

    @property
    def content(self) -> Content:
        return self.entries[0].content

    @property
    def compare(self) -> str | None:
        """Set where all jobs that it answers ask for a dense partner."""
        return self.entries[0].compare if all(entry.compare for entry in self.entries) else None

    @property
    def jobs(self) -> frozenset[frozenset[str]]:
        return frozenset().union(*(entry.jobs for entry in self.entries))


def arms(entries: Sequence[Entry]) -> list[Arm]:
    """The arms, in the order of their first entries, with labels that tell them apart."""
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        grouped[entry.arm].append(entry)
    found = [Arm("", members) for members in grouped.values()]
    rows = [{k: v for k, v in arm.content.items() if k != "seed"} for arm in found]
    chosen = [arm.entries[0].chosen for arm in found]
    names = labels(rows, chosen, [arm.compare for arm in found])
    repeated = Counter(names)  # a class of one name in two packages, say
    names = [f"{n} ({i})" if repeated[n] > 1 else n for i, n in enumerate(names, start=1)]
    if len(found) == 1:
        known = [f"{g}={chosen[0][g]}" for g in GROUPS[:3] if g in chosen[0]]
        names = [" ".join(known) or "all alike"]
    return [Arm(name, arm.entries) for name, arm in zip(names, found, strict=True)]
