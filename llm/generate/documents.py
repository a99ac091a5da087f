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
) -> list[str]:
    """`count` documents, begun as in training; a function of the seed."""
    generator = torch.Generator(model.embedding.device).manual_seed(seed)
    was_training = model.training
    model.eval()
    rows = sample_rows(
        model, reading.start_id, count, reading.seq_len, temperature, top_k, generator
    )
    model.train(was_training)
    return [reading.tokenizer.decode(row) for row in rows]
