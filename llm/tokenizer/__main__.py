"""What a tokenizer makes of a corpus; one that learns from the corpus is trained first.

    python -m llm.tokenizer data=custom data.path=FILE_OR_FOLDER tokenizer=bpe

Takes what `llm.train` takes. The corpus is prepared as it would be for a run, so that the run finds
it there, with this very vocabulary.
"""

import itertools
import sys
from typing import TYPE_CHECKING

from llm.config.entry import Job, main

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm.data.prepare import Prepared
    from llm.tokenizer.base import Tokenizer

#: How many of the longest pieces, and of the tokens of a sample, are shown.
LONGEST, SAMPLE = 12, 120
#: Backgrounds of neighbouring tokens, of the 256-colour palette.
_SHADES = (24, 53, 22, 58)


def show(job: Job) -> None:
    """Print the vocabulary's size, bytes a token, the longest pieces and a sample."""
    import numpy as np

    from llm.data.prepare import Prepared
    from llm.generate.colour import wanted
    from llm.prepare import prepare_data

    _, prepared = prepare_data(job)
    parts = {"": prepared} if isinstance(prepared, Prepared) else prepared.parts
    tokenizer = prepared.tokenizer

    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    print(f"vocabulary     {tokenizer.vocab_size:,} ids ({job.chosen['tokenizer']})")
    for name, part in parts.items():
        counts = np.bincount(part.tokens("val"), minlength=tokenizer.vocab_size)
        counts[tokenizer.eot] = 0
        n_tokens, n_bytes = int(counts.sum()), part.manifest["splits"]["val"]["bytes"]
        where = f"the validation split{f' of {name}' if name else ''}"
        print(
            f"bytes a token  {n_bytes / n_tokens:.3f} on {where}: {n_bytes:,} bytes, "
            f"{n_tokens:,} tokens, {np.count_nonzero(counts):,} of the ids"
        )
    longest = sorted(pieces, key=lambda piece: (-len(piece), piece))[:LONGEST]
    print(f"longest        {' '.join(_visible(piece) for piece in longest)}")
    for name, part in parts.items():
        print(f"\na sample{f' of {name}' if name else ''}, token by token")
        print(_sample(tokenizer, part, wanted(sys.stdout)))


def _sample(tokenizer: "Tokenizer", prepared: "Prepared", colours: bool) -> str:
    """The beginning of the validation split."""
    ids: Iterable[int] = prepared.tokens("val")[1 : SAMPLE + 1].tolist()
    shown = [_visible(tokenizer.token_bytes(i)) for i in ids if i != tokenizer.eot]
    if not colours:
        return "|".join(shown)
    shades = itertools.cycle(_SHADES)
    return "".join(f"\033[48;5;{next(shades)}m\033[97m{piece}\033[0m" for piece in shown)


def _visible(piece: bytes) -> str:
    """A piece on one line: spaces as they are seen best, part of a character by its bytes."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{value:02x}" for value in piece)
    text = text.replace(" ", "␣").replace("\n", "⏎")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    main("llm.tokenizer", show)
