"""Documents that a model writes by itself: samples, and what an instrument accepts or not."""

from llm.data.batches import mix
from llm.generate.engine import Engine, Request
from llm.model.transformer import Transformer
from llm.reading import Reading

#: Documents that are written at a time.
_SLOTS = 64


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
    start, eot = reading.tokenizer.encode(opening) or [reading.start_id], reading.tokenizer.eot
    was_training = model.training
    engine = Engine(model.eval(), min(count, _SLOTS), allowed_V=reading.allowed_V)
    most = engine.max_len - len(start) + 1
    requests = [
        Request(start, most, temperature, top_k, key=mix(seed, number), stop_ids=(eot,))
        for number in range(count)
    ]
    answers = sorted(engine.generate(requests), key=lambda answer: answer.ticket)
    model.train(was_training)
    ended = [answer.reason == "stop" for answer in answers]
    rows = [a.tokens[:-1] if over else a.tokens for a, over in zip(answers, ended, strict=True)]
    return [reading.tokenizer.decode(row) for row in rows]
