"""Documents that a model writes by itself: samples, and what an instrument accepts or not."""

import torch

from llm.generate.sampling import sample_rows
from llm.model.transformer import Transformer
from llm.reading import Reading


def write_documents(
    model: Transformer,
    reading: Reading,
    count: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    opening: str = "",
) -> list[str]:
    """`count` documents, begun as in training; a function of the seed.

    Args:
        opening: they go on from it, and are not whole; "": from the start id
    """
    start = reading.tokenizer.encode(opening) or [reading.start_id]
    generator = torch.Generator(model.embedding.device).manual_seed(seed)
    was_training = model.training
    model.eval()
    eot, allowed_V = reading.tokenizer.eot, reading.allowed_V
    rows = sample_rows(model, start, eot, count, temperature, top_k, generator, allowed_V)
    model.train(was_training)
    return [reading.tokenizer.decode(row) for row in rows]
