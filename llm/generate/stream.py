"""One text that goes on for longer than the model's context."""

import math
from collections.abc import Callable, Iterator, Sequence

from llm.config.errors import Refused
from llm.data.batches import mix
from llm.generate.engine import Engine, Request


def newer_half(context: list[int], max_len: int) -> list[int]:
    """What is kept of a full context unless somebody knows better."""
    return context[-max(1, max_len // 2) :]


def check_length(prompt: Sequence[int], max_len: int) -> None:
    """Refuse a prompt of more than `max_len` tokens."""
    if len(prompt) > max_len:
        raise Refused(
            f"the prompt has {len(prompt)} tokens, more than the {max_len} that the model reads at "
            "once (model.max_seq_len); shorten it"
        )


def stream(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    shorten: Callable[[list[int], int], list[int]] = newer_half,
) -> Iterator[tuple[int, float]]:
    """Continue `prompt` one id at a time: (id, the model's probability of it).

    Args:
        engine: with nothing else to do
        prompt: at least one id, and no more than the context holds
        shorten: what is kept of a context that is full, given that context and the most ids that
            fit; it is read again from there
    Raises:
        Refused: the prompt is too long
    """
    check_length(prompt, engine.max_len)
    context, drawn = list(prompt), 0
    while drawn < max_tokens:
        if len(context) > engine.max_len:
            context = shorten(context, engine.max_len)
        left, key = max_tokens - drawn, mix(seed, drawn)
        ticket = engine.submit(Request(tuple(context), left, temperature, top_k, key=key))
        try:
            while engine.busy:
                for event in engine.step():
                    context.append(event.token)
                    drawn += 1
                    yield event.token, math.exp(event.logprob)
        finally:  # also where nobody asks for more
            engine.cancel(ticket)
