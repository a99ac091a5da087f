"""A model in the middle of a text.

V vocabulary
"""

import torch
from torch import Tensor

from llm.model.transformer import Transformer


class Reader:
    """Reads one text with a key-value cache and remembers what it has read between calls.

    So a conversation that goes on costs its new tokens only. All of it survives an interruption
    between any two lines: what counts as read is what the cache says.
    """

    def __init__(self, model: Transformer):
        self.model = model
        self.max_len = model.max_seq_len
        self._ids: list[int] = []  # the first `cache.length` of them have been read
        self._cache = model.cache(1, model.max_seq_len)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> Tensor:
        """Logits (1, V) of what follows `ids`, of which only the new part is computed.

        Args:
            ids: 1 to `max_len` of them
        """
        shared = min(self._cache.length, len(ids) - 1)  # the last one is read for its logits
        if self._ids[:shared] != ids[:shared]:
            pairs = zip(self._ids, ids, strict=False)
            shared = next(i for i, (before, now) in enumerate(pairs) if before != now)
        self._cache.lengths[0] = shared
        self._ids = ids[:]
        unread = torch.tensor([ids[shared:]], device=self.model.embedding.device)
        output = self.model(unread, cache=self._cache, last_only=True)
        assert output.logits_BTV is not None
        return output.logits_BTV[:, -1]
