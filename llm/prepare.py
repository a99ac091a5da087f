"""`python -m llm.prepare`: a corpus made ready, without training on it.

    python -m llm.prepare data=tinystories data.num_samples=10000 tokenizer=gpt2

It takes the same overrides as `llm.train`, which prepares by itself what is missing. Interrupted,
the same command goes on. The last line on standard output is the prepared folder.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llm.config.entry import Job, main

if TYPE_CHECKING:
    from llm.data.corpus import Corpus
    from llm.data.mixture import Mixture, PreparedMixture
    from llm.data.prepare import Prepared


def prepare_data(job: Job) -> "tuple[Corpus | Mixture, Prepared | PreparedMixture]":
    """The corpus of a validated config, and its token files, made where they are missing."""
    from llm.config.instantiate import instantiate
    from llm.data.mixture import prepare_parts
    from llm.runs.identity import canonical

    config, names, plugins = job.config, job.chosen, job.config["plugins"]
    corpus = instantiate(config["data"], "data", plugins)
    tokenizer = instantiate(config["tokenizer"], "tokenizer", plugins)
    root = Path(config["outputs"]) / "data"
    of, node = (names["data"], names["tokenizer"]), canonical(config["tokenizer"], "tokenizer")
    return corpus, prepare_parts(corpus, tokenizer, node, of, root)


def run(job: Job) -> None:
    """Prepare, and say what was made."""
    from llm.data.listing import card
    from llm.data.prepare import Prepared

    for note in job.validated.notes:
        print(note, file=sys.stderr)
    _, prepared = prepare_data(job)
    parts = [prepared] if isinstance(prepared, Prepared) else prepared.parts.values()
    for part in parts:
        print(card(part.manifest))
        print(part.folder)


if __name__ == "__main__":
    main("llm.prepare", run)
