"""What training text says of the texts that a model will write: how they begin, of which ids."""

import numpy as np

from llm.data.mixture import PreparedMixture
from llm.data.prepare import Prepared

#: Training documents that it takes to learn from end-of-text how a text begins.
_ENOUGH = 100
#: Ids of the validation text from which an opening is made.
_OPENING = 48
#: Ids that are looked at in one go.
_STRETCH = 1 << 22


def opening(prepared: Prepared | PreparedMixture, most: int) -> str:
    """The first words of the validation text where training has few beginnings, else "".

    A model that has read a single book has met end-of-text once an epoch: what it writes behind it
    is noise.

    Args:
        most: ids of it
    """
    parts = _trained_on(prepared)
    if sum(part.manifest["splits"]["train"]["documents"] for part in parts) >= _ENOUGH:
        return ""
    tokenizer = parts[0].tokenizer
    ids = parts[0].tokens("val")[1 : 1 + min(most, _OPENING)].tolist()
    ids = ids[: ids.index(tokenizer.eot)] if tokenizer.eot in ids else ids
    text = tokenizer.decode(ids).rstrip("\ufffd")  # half of a character
    words = text.rsplit(maxsplit=1)  # the last one may be cut, too
    return words[0] if len(words) == 2 else text


def used_ids(prepared: Prepared | PreparedMixture) -> np.ndarray:
    """Whether each id occurs in the training text: (V,) bool. 2 ns a token."""
    used_V = np.zeros(prepared.tokenizer.vocab_size, bool)
    for part in _trained_on(prepared):
        ids = part.tokens("train")
        for first in range(0, len(ids), _STRETCH):
            used_V[ids[first : first + _STRETCH]] = True
    return used_V


def _trained_on(prepared: Prepared | PreparedMixture) -> list[Prepared]:
    if isinstance(prepared, Prepared):
        return [prepared]
    return [part for name, part in prepared.parts.items() if prepared.weights[name]]
