"""A model that says what it is told to."""

from types import SimpleNamespace

import pytest
import torch

from llm.model.cache import KVCache
from llm.model.transformer import Output
from llm.tokenizer.base import Tokenizer


class Parrot:
    """Stands for a Transformer: behind a text that ends in a key of `replies` comes its value.

    A reply that is over, and any other text, is followed by end-of-text. `read` counts the ids
    that were computed, so that tests see what a cache saves.
    """

    def __init__(self, tokenizer: Tokenizer, replies: dict[str, str], max_seq_len: int = 256):
        self.tokenizer, self.replies, self.max_seq_len = tokenizer, replies, max_seq_len
        self.embedding = torch.zeros(tokenizer.vocab_size, dtype=torch.bfloat16)
        self.position = SimpleNamespace(limit=None)
        self.seen: list[int] = []
        self.read = 0

    def parameters(self):
        return iter(())

    def cache(self, rows: int, max_len: int) -> KVCache:
        return KVCache([], rows, max_len)

    def __call__(self, tokens_BT: torch.Tensor, cache: KVCache, last_only: bool = False) -> Output:
        ids = tokens_BT[0].tolist()[: cache.counts[0]]
        self.read += len(ids)
        self.seen = [*self.seen[: cache.length], *ids]
        assert len(self.seen) <= self.max_seq_len
        cache.advance(len(ids))
        logits_V = torch.zeros(self.tokenizer.vocab_size)
        logits_V[self._next()] = 20.0
        return Output(logits_BTV=logits_V.expand(1, 1, -1))

    @property
    def context(self) -> str:
        return self.tokenizer.decode(self.seen)

    def _next(self) -> int:
        """The next id of the reply to the key that ended last."""
        text = b"".join(self.tokenizer.token_bytes(token) for token in self.seen)
        keys = {key.encode(): reply.encode() for key, reply in self.replies.items()}
        ends = {key: text.rfind(key) + len(key) for key in keys if key in text}
        for key in sorted(ends, key=ends.__getitem__, reverse=True):
            said, reply = text[ends[key] :], keys[key]
            if reply.startswith(said) and said != reply:
                rest = reply[len(said) :]
                ids = range(self.tokenizer.vocab_size)
                fitting = [i for i in ids if rest.startswith(self.tokenizer.token_bytes(i))]
                return max(fitting, key=lambda i: len(self.tokenizer.token_bytes(i)))
        return self.tokenizer.eot


@pytest.fixture
def parrot():
    """Makes a `Parrot` from a tokenizer and its replies."""
    return Parrot
