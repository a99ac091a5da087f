"""Text from ids that arrive one at a time, as chat shows it."""

import codecs

from llm.tokenizer.base import Tokenizer


class StreamDecoder:
    """Turns ids into text as soon as it is complete.

    One character may need several ids (a byte each, at worst), so what is not yet complete waits.
    All that `push` and `finish` returned, joined, is exactly `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, "" while a character is unfinished."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ""."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
