"""Loading and saving folders that `transformers` reads and writes."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.build import build_model
from llm.config.errors import Refused
from llm.generate import TEMPERATURE, TOP_K
from llm.hf.card import model_card
from llm.hf.family import Family
from llm.hf.folder import WEIGHTS, Weights, read_json, weights_file
from llm.hf.mapping import family_of, from_theirs, to_theirs
from llm.hf.tokenizer_json import byte_pairs_of, tokenizer_files
from llm.hf.weights import Layout, check
from llm.model.transformer import Transformer
from llm.reading import Reading
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer

#: How the model's run read text.
READING = "reading.json"
#: Rows of one call in evaluation, for a folder that does not say.
_EVAL_ROWS = 8


def read_config(folder: Path) -> tuple[dict[str, Any], int, Family]:
    """Our config of the model in a folder, its vocabulary size and its family."""
    file = folder / "config.json"
    theirs = read_json(file)
    try:
        family = family_of(theirs)
        return *from_theirs(theirs, family), family
    except Refused as refusal:
        raise Refused(f"{file}: {refusal}") from None


def load(path: str | Path) -> Transformer:
    """The model in a folder of public format, in evaluation mode, called by the forward contract.

    Weights become float32. `model.config` is our config of it. Nothing in the folder is executed.

    Args:
        path: a folder with config.json and safetensors, sharded or not
    Raises:
        Refused: another architecture, a feature that is not ours, damaged or unfitting weights
    """
    folder = Path(path)
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder")
    config, vocab_size, family = read_config(folder)
    with Weights(folder) as weights:
        _refuse_absurd_counts(config, len(weights.shapes), folder)
        model = _build(config, vocab_size, folder, "meta")
        theirs = _as_named(weights, family, model.head is None)
        shapes = {name: weights.shapes[at] for name, at in theirs.items()}
        check(shapes, Layout(family.names, model), folder)
        model = _build(config, vocab_size, folder, "cpu")
        Layout(family.names, model).from_disk(_Renamed(weights, theirs))
    return model.eval()


def _refuse_absurd_counts(config: dict[str, Any], n_tensors: int, folder: Path) -> None:
    """More layers or experts than there are tensors: not even counted through."""
    for count, what in (
        (config["model"]["n_layers"], "layers"),
        (config["moe"].get("n_experts", 1), "experts"),
    ):
        if count > n_tensors:
            raise Refused(
                f"{folder}: config.json has {count} {what}, and there are {n_tensors} tensors"
            )


def _build(config: dict[str, Any], vocab_size: int, folder: Path, device: str) -> Transformer:
    try:
        with torch.random.fork_rng(devices=()):  # loading draws nothing from the caller's stream
            return build_model({**config, "seed": 0}, vocab_size, device=device)
    except Refused as refusal:
        raise Refused(f"{folder / 'config.json'}: {refusal}") from None
    except RuntimeError as error:  # sizes beyond what a tensor can count
        raise Refused(f"{folder / 'config.json'}: {str(error).splitlines()[0]}") from None


def _as_named(weights: Weights, family: Family, tied: bool) -> dict[str, str]:
    """The family's names to those in the files, without what holds nothing trained."""
    found: dict[str, str] = {}
    prefixed = any(name.startswith(family.optional) for name in weights.shapes)
    for at in weights.shapes:
        bare = family.optional and not prefixed and not at.startswith("lm_head.")
        name = family.optional + at if bare else at
        if not any(re.fullmatch(pattern, name) for pattern in family.unread):
            found[name] = at
    head, embedding = found.get("lm_head.weight"), found.get(family.names[0].theirs)
    if tied and head is not None and embedding is not None:
        # Some files hold a tied head a second time.
        if not torch.equal(weights[head], weights[embedding]):
            raise Refused(
                f"{weights.folder}: {head} differs from {embedding}, and config.json ties them: "
                "tie_word_embeddings"
            )
        del found["lm_head.weight"]
    return found


class _Renamed(Mapping[str, Tensor]):
    """Tensors by the family's names."""

    def __init__(self, weights: Weights, names: dict[str, str]):
        self.weights, self.names = weights, names

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.names[name]]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def save(
    model: Transformer,
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    about: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
) -> Path:
    """Write a folder that `transformers` opens, whole or not at all; returns it.

    Which architecture it is follows from `model.config`. Settings of training (dropout, weights of
    auxiliary losses) do not travel.

    Args:
        model: built by `llm.build`, opened by `load` or `llm.load_run`
        path: a new folder, or an empty one
        tokenizer: its own, as `tokenizer.json` where that can express it
        about: how the model was made, for its README
        reading: of its run, which the folder brings along for `llm.evaluate`
    Raises:
        Refused: no public architecture has all of the model's parts; the key is named
    """
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise Refused(f"{folder} is there already; name a new folder")
    vocab_size, config = model.embedding.shape[0], model.config
    if tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise Refused(f"the tokenizer has {tokenizer.vocab_size} ids, and the model {vocab_size}")
    family, theirs = to_theirs(config, vocab_size)
    end = None if tokenizer is None else tokenizer.eot
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    theirs |= ends
    generation = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, **ends}
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    theirs_of_text = None
    if tokenizer is not None:
        theirs_of_text = tokenizer_files(tokenizer, config["model"]["max_seq_len"])

    working = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    for name, value in {
        "config.json": theirs,
        "generation_config.json": generation,
        **(theirs_of_text or {}),
        **({} if reading is None else {READING: reading.stored()}),
    }.items():
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (working / name).write_text(text + "\n", encoding="utf-8")
    layout = Layout(family.names, model)
    (working / WEIGHTS).write_bytes(weights_file(layout.to_disk()))
    card = model_card(
        folder.resolve().name, theirs, n_parameters, theirs_of_text is not None, about or {}
    )
    (working / "README.md").write_text(card, encoding="utf-8")
    if tokenizer is not None:
        tokenizers.save(tokenizer, working)
    if folder.is_dir():
        folder.rmdir()
    os.replace(working, folder)
    return folder


def load_reading(path: str | Path) -> Reading:
    """How the model in a folder reads: what `save` noted, else in fp32, as the weights are.

    Raises:
        Refused: its tokenizer is of a kind that is not ours
    """
    folder = Path(path)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise Refused(f"{folder} has no tokenizer of ours, so its ids cannot be counted in bytes")
    reading = Reading(
        tokenizer=tokenizer,
        precision="fp32",
        seq_len=read_config(folder)[0]["model"]["max_seq_len"],
        document_mask=False,
        start_id=tokenizer.eot,
        eval_rows=_EVAL_ROWS,
    )
    file = folder / READING
    try:
        return reading.restored(read_json(file)) if file.exists() else reading
    except ValueError as problem:
        raise Refused(f"{file}: {problem}") from None


def load_tokenizer(path: str | Path) -> Tokenizer | None:
    """The tokenizer of a folder, None where it is of a kind that is not ours.

    Ours come back from the `vocabulary.json` that `save` wrote beside `tokenizer.json`; of others'
    there are byte pairs in GPT-2's manner.
    """
    folder = Path(path)
    if (folder / tokenizers.FILE).exists():
        return tokenizers.load(folder)
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    try:
        return byte_pairs_of(read_json(file))
    except (KeyError, TypeError, AttributeError, IndexError):
        raise Refused(f"{file} is no vocabulary") from None
