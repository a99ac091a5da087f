"""How a run reads text and computes: one value, stored with the run.

Training, evaluation on any split or text, chat, samples and export take it whole, so that what
holds for one of them holds for all.
"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from llm.data.batches import Batch
from llm.data.beginnings import opening, used_ids
from llm.data.corpus import Corpus, Dialogue
from llm.data.mixture import Mixture, PreparedMixture
from llm.data.prepare import Prepared
from llm.hardware.machine import DTYPES, Machine, multiplies
from llm.tokenizer.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a run reads text and computes.

    tokenizer: text to ids and back (the run's vocabulary.json)
    corpus: where the text comes from, None where that cannot be opened (any more)
    precision: of matrix products: fp32, bf16 or fp16
    seq_len: tokens of a row, in training and evaluation
    document_mask: whether attention and positions stay within a document
    start_id: the id that stands before every text
    eval_rows: rows of one call of the model in evaluation
    opening: what a text that nobody begins goes on from, where training met too few beginnings to
        know one; "": `start_id` begins it
    used: the ids of the training text, which alone are drawn, as bits in hex; "": all
    """

    tokenizer: Tokenizer
    corpus: Corpus | Mixture | None = None
    precision: str
    seq_len: int
    document_mask: bool
    start_id: int
    eval_rows: int
    opening: str = ""
    used: str = ""

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        corpus: Corpus | Mixture | None,
        facts: Mapping[str, Any],
    ) -> "Reading":
        """That of a run.

        Args:
            config: the run's
            facts: its run.json, or what is known of it yet: `precision`, and under "reading" what
                `stored` gave. Of a run that older code made, the rest follows from its config
        """
        rows, processes = config["train"]["batch_size"], facts.get("processes", 1)
        found = facts.get("found_batch", {}).get(str(processes))
        reading = cls(
            tokenizer=tokenizer,
            corpus=corpus,
            precision=facts.get("precision", "fp32"),
            seq_len=config["model"]["max_seq_len"],
            document_mask=config["data"].get("document_mask", False),
            start_id=tokenizer.eot,
            eval_rows=rows if found is None else min(rows, found // processes),
        )
        return reading.restored(facts.get("reading", {}))

    def restored(self, stored: Mapping[str, Any]) -> "Reading":
        """With these values of `stored()`; ValueError where they cannot be such."""
        own = self.stored()
        unlike = [name for name, value in stored.items() if type(value) is not type(own.get(name))]
        if unlike or stored.get("precision", "fp32") not in DTYPES:
            raise ValueError(f"this is no description of reading: {dict(stored)}")
        return replace(self, **stored)

    def stored(self) -> dict[str, Any]:
        """What run.json keeps; the tokenizer and the corpus are in files of their own."""
        kept = [f.name for f in fields(self) if f.name not in ("tokenizer", "corpus")]
        return {name: getattr(self, name) for name in kept}

    def learnt_from(self, prepared: Prepared | PreparedMixture) -> "Reading":
        """With what training text says of texts to be written."""
        used_V = used_ids(prepared)
        used = "" if used_V.all() else np.packbits(used_V).tobytes().hex()
        return replace(self, opening=opening(prepared, self.seq_len // 2), used=used)

    def prompt(self, ids: list[int]) -> list[int]:
        """What the model goes on from where a text has begun with `ids`, as it was trained to."""
        if not self.opening:
            return [self.start_id, *ids]
        return ids or self.tokenizer.encode(self.opening)

    @cached_property
    def allowed_V(self) -> torch.Tensor | None:
        """Which ids may be drawn, None for all."""
        if not self.used:
            return None
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.used), np.uint8))
        return torch.from_numpy(bits[: self.tokenizer.vocab_size].astype(bool))

    @property
    def dialogue(self) -> Dialogue | None:
        """How a conversation is written, None for plain continuation."""
        return None if self.corpus is None else self.corpus.dialogue

    def inputs(self, rows: Batch, part: slice) -> dict[str, torch.Tensor]:
        """What the model is given of some rows, on the CPU: each (B, T)."""
        arrays = {"tokens_BT": rows.tokens_RT, "targets_BT": rows.targets_RT}
        if self.document_mask:
            arrays["document_ids_BT"] = rows.documents_RT
        return {name: torch.from_numpy(array_RT[part]) for name, array_RT in arrays.items()}

    def autocast(self, device: torch.device | str) -> AbstractContextManager[Any]:
        """Matrix products in the run's precision; weights and sums stay float32."""
        return Machine(torch.device(device).type, self.precision).autocast()

    def on(self, device: torch.device | str) -> "Reading":
        """The same, in fp32 where the device cannot multiply as the run did: one line says so."""
        kind = torch.device(device).type
        if multiplies(kind, self.precision):
            return self
        line = f"this machine cannot multiply in {self.precision}, as the run did: taking fp32"
        print(line, file=sys.stderr)
        return replace(self, precision="fp32")
