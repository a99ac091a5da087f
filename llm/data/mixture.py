"""Several corpora in stated proportions: prepared apart, with one tokenizer, and read together."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import NonNegativeFloat
from llm.data import prepare as preparation
from llm.data.apart import Apart, shared
from llm.data.batches import MixtureOrder, Order, TrainOrder
from llm.data.corpus import Corpus, Dialogue, Instrument
from llm.data.prepare import Prepared, open_prepared
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Part:
    """One corpus of a mixture.

    weight: its share of the training tokens, in the unit of the other weights; where it is 0 the
        part is not trained on, but judged as the others are
    corpus: a `data` node
    """

    weight: NonNegativeFloat
    corpus: Node


class Mixture:
    """Corpora by name, each with a weight.

    Args:
        parts: name to part; null leaves one out that a YAML file has
    """

    dialogue: Dialogue | None = None

    def __init__(self, *, parts: dict[str, Part | None]):
        # In the order of their names, whatever order they were typed in.
        kept = {name: part for name, part in sorted(parts.items()) if part is not None}
        if not any(part.weight for part in kept.values()):
            raise Refused("give a corpus a weight: data.parts.NAME.weight=1", "parts")
        for name, part in kept.items():
            if isinstance(part.corpus, Mixture):
                raise Refused("is a mixture itself; name its parts here", f"parts.{name}.corpus")
        self.corpora: dict[str, Corpus] = {n: part.corpus for n, part in kept.items()}  # type: ignore[misc]
        self.weights = {name: part.weight for name, part in kept.items()}
        talking = [c.dialogue for c in self.corpora.values() if c.dialogue is not None]
        self.dialogue = talking[0] if talking else None


@dataclass(frozen=True)
class PreparedMixture:
    """What `Prepared` is for one corpus."""

    parts: dict[str, Prepared]
    weights: dict[str, float]

    @property
    def fingerprint(self) -> str:
        """Of what the parts hold."""
        return fingerprint_of({name: part.fingerprint for name, part in self.parts.items()})

    @property
    def text_fingerprint(self) -> str:
        """Of the text of the parts, whatever the tokenizer."""
        return fingerprint_of({name: part.text_fingerprint for name, part in self.parts.items()})

    @property
    def tokenizer(self) -> Tokenizer:
        return next(iter(self.parts.values())).tokenizer


def prepare_parts(
    corpus: Corpus | Mixture,
    tokenizer: Tokenizer,
    tokenizer_node: dict[str, Any],
    names: tuple[str, str],
    root: Path,
) -> Prepared | PreparedMixture:
    """`llm.data.prepare.prepare`, for a mixture as well.

    A part is prepared as it would be alone, and found where it was. A vocabulary that comes from
    the corpus is chosen once, from the training texts of all parts whatever their weights: runs
    that differ in these share all files, and their losses compare.

    Args:
        tokenizer: as configured
        tokenizer_node: its config
        names: of the corpus and of the tokenizer, as chosen
        root: `outputs/data`
    """
    if not isinstance(corpus, Mixture):
        return preparation.prepare(corpus, tokenizer, tokenizer_node, "-".join(names), root)
    if tokenizer.needs_fit:
        tokenizer = _shared(corpus, tokenizer, tokenizer_node, names[1], root)
        tokenizer_node = {**tokenizer_node, "fitted": _hash(tokenizer.state())}

    def prepared(corpora: dict[str, Corpus]) -> dict[str, Prepared]:
        return {
            name: preparation.prepare(part, tokenizer, tokenizer_node, f"{name}-{names[1]}", root)
            for name, part in corpora.items()
        }

    alone = prepared(corpus.corpora)
    return PreparedMixture({**alone, **prepared(_apart(corpus, alone))}, corpus.weights)


def fingerprints(
    mixture: Mixture, tokenizer: Tokenizer, tokenizer_node: dict[str, Any], name: str, root: Path
) -> dict[str, str] | None:
    """The fingerprint that `prepare_parts` gives each part; nothing is prepared.

    None where the vocabulary is still to be chosen from the texts.

    Args:
        name: of the tokenizer
    """
    if tokenizer.needs_fit:
        folder = _vocabulary(mixture, tokenizer_node, name, root)
        if not (folder / tokenizers.FILE).exists():
            return None
        tokenizer = tokenizers.load(folder, (type(tokenizer).__module__,))
        tokenizer_node = {**tokenizer_node, "fitted": _hash(tokenizer.state())}

    def marks(corpora: dict[str, Corpus]) -> dict[str, str]:
        return {n: preparation.fingerprint(part, tokenizer_node) for n, part in corpora.items()}

    alone = marks(mixture.corpora)
    folders = {part: root / f"{part}-{name}-{mark}" for part, mark in alone.items()}
    if not all(folder.exists() for folder in folders.values()):
        return alone
    plugins = (type(tokenizer).__module__,)
    parts = {part: open_prepared(folder, plugins) for part, folder in folders.items()}
    return {**alone, **marks(_apart(mixture, parts))}


def _apart(mixture: Mixture, alone: dict[str, Prepared]) -> dict[str, Corpus]:
    """The parts that train on what another one holds out, without that.

    Args:
        alone: all parts, each as it would be by itself
    """
    found: dict[str, Corpus] = {}
    for name, corpus in mixture.corpora.items():
        if not mixture.weights[name]:
            continue
        kept = shared(name, alone)
        if kept is None:
            text = "prepared by an earlier version, so it may train on what other parts hold out"
            print(f"{name}: {text}; delete {alone[name].folder} to find out", file=sys.stderr)
        elif kept and isinstance(corpus, Instrument):  # whose text is its own
            text = f"{len(kept):,} of its training documents are held out by other parts"
            print(f"{name}: {text}, and stay", file=sys.stderr)
        elif kept:
            found[name] = Apart(corpus, kept)
    return found


def fingerprint_of(parts: dict[str, str]) -> str:
    """Of a mixture, from those of its parts; the weights are the config's."""
    return _hash(parts)


def find_prepared(
    root: Path,
    facts: Mapping[str, Any],
    node: Mapping[str, Any],
    plugins: tuple[str, ...] = (),
) -> Prepared | PreparedMixture | None:
    """A run's prepared corpus by its fingerprint, None where it is gone. No text is opened.

    Args:
        root: `outputs/data`
        facts: the run's, which know the parts of a mixture (older ones do not)
        node: the config's `data`
        plugins: modules beside `llm.tokenizer` that the tokenizer may be from
    """
    marks = facts.get("data_parts", {"": facts["data_fingerprint"]})
    folders = {name: next(iter(root.glob(f"*-{mark}")), None) for name, mark in marks.items()}
    found = {n: open_prepared(f, plugins) for n, f in folders.items() if f is not None}
    if len(found) < len(marks):
        return None
    if "data_parts" not in facts:
        return found[""]
    return PreparedMixture(found, {name: node["parts"][name]["weight"] for name in found})


def _vocabulary(mixture: Mixture, node: dict[str, Any], name: str, root: Path) -> Path:
    """Where the tokenizer that is fitted to all parts is kept."""
    facts = [corpus.describe() for corpus in mixture.corpora.values()]
    return root / ".vocabularies" / f"{name}-{_hash([node, facts])}"


def _shared(
    mixture: Mixture, tokenizer: Tokenizer, node: dict[str, Any], name: str, root: Path
) -> Tokenizer:
    """The tokenizer fitted to all parts."""
    folder = _vocabulary(mixture, node, name, root)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / tokenizers.FILE).exists():
            tokenizer = tokenizers.load(folder, (type(tokenizer).__module__,))
        else:
            lists = [corpus.pieces for corpus in mixture.corpora.values()]
            known = [pieces for pieces in lists if pieces is not None]
            every = [piece for pieces in known for piece in pieces]
            pieces = every if len(known) == len(lists) else None
            tokenizer.fit(_texts(tokenizer, mixture), pieces)
            tokenizers.save(tokenizer, folder)
    tokenizer.needs_fit = False
    return tokenizer


def _texts(tokenizer: Tokenizer, mixture: Mixture) -> Iterator[str]:
    for name, corpus in mixture.corpora.items():
        yield from preparation.texts_to_fit(tokenizer, corpus, name)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def training_order(prepared: Prepared | PreparedMixture, seq_len: int, seed: int) -> Order:
    """The rows of `seq_len` tokens that training reads."""
    if isinstance(prepared, Prepared):
        return TrainOrder(prepared.tokens("train"), seq_len, seed)
    orders = {n: TrainOrder(p.tokens("train"), seq_len, seed) for n, p in prepared.parts.items()}
    return MixtureOrder(orders, prepared.weights, seed)
