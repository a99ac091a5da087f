"""How a text is cut into pieces: the one regular expression that the house has for it.

Corpora with known probabilities state them piece by piece, and the word tokenizer gives one id to
a piece, so that both mean the same thing by "the next token".
"""

import re

#: A word or a number with the space before it (apostrophes stay inside: " Mia's"), one mark of
#: punctuation with the space before it, or one character of white space. Every character belongs
#: to exactly one match, so that joining the pieces gives back the text.
PIECES = re.compile(r" ?[A-Za-z]+(?:'[a-z]+)?| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")


def pieces_of(text: str) -> list[str]:
    """The pieces of `text`, in order; joined they are `text` again."""
    return PIECES.findall(text)
