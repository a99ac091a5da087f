"""Many texts at once from one model: rows join and leave at any step, each with its own settings.

A row's tokens and log-probabilities are equal to the byte whoever shares the batch (on a CPU, for
dense models and every router that drops nothing). Prompts are read alone, in blocks at fixed
places, and a prefix is reused at the ends of blocks only; no product of a decoding step has fewer
rows than the kernels need to give each row the same bytes; attention sums in blocks
(`llm.model.cached`); draws depend on a row's key and place alone. The engine tries this on the
machine at hand when it begins; where the bytes differ all the same, every step computes all slots.

R rows, T time, V vocabulary
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llm.generate.sampling import draw, uniform
from llm.layers.roles import role_of
from llm.model.cache import BLOCK
from llm.model.transformer import Transformer

#: Of a product in float32 on a CPU, kernels for one, for two and three, and for four rows and more
#: round differently; in bfloat16 all are alike.
_LEAST_ROWS = 4
#: Bytes of keys and values that are kept of prompts, for others that begin alike.
_PREFIX_BYTES = 2**28

#: Why a row is over: an id of `stop_ids`, `max_tokens`, or the end of the model's context.
Reason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Request:
    """A text to go on with.

    Args:
        prompt: ids, at least one
        max_tokens: at most so many are drawn
        temperature: 0 takes the likeliest
        top_k, top_p: draw from the k likeliest, or from the fewest whose probabilities reach p
        key: draws are a function of it and of the place in the text, and of nothing else
        stop_ids: ids that end it
        logprobs: so many of the likeliest are told with each token
        edit: changes logits (V,) before a draw, given the ids so far
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    key: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int = 0
    edit: Callable[[Tensor, Sequence[int]], Tensor] | None = None


class Event(NamedTuple):
    """One token of a row.

    logprob: of the token at temperature 1, before anything is cut off or edited
    top: (id, logprob) of the likeliest
    reason: why the row is over with this token; None: it goes on
    """

    ticket: int
    token: int
    logprob: float
    top: list[tuple[int, float]]
    reason: Reason | None


@dataclass
class Answer:
    """All events of a row; a stop id is the last of its tokens."""

    ticket: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Reason | None = None


@dataclass(eq=False)
class _Row:
    """A request in its slot.

    ids: the prompt and what was drawn
    read: so many of the prompt's are in the cache
    version: of the weights that it began with
    """

    ticket: int
    request: Request
    ids: list[int]
    read: int = 0
    version: int = 0

    @property
    def reading(self) -> bool:
        return self.read < len(self.request.prompt)


class Engine:
    """Slots over one cache; nothing of it runs but in `step`.

    Args:
        model: in evaluation; its weights' type is what is computed in
        slots: rows at a time; further requests wait
        max_len: tokens of a row, its prompt counted; None: the model's context
        allowed_V: which ids may be drawn; None: all
    """

    def __init__(
        self,
        model: Transformer,
        slots: int,
        max_len: int | None = None,
        allowed_V: Tensor | None = None,
    ):
        self.model, self.slots = model, slots
        self.max_len = min(max_len or model.max_seq_len, model.position.limit or 2**62)
        weight = model.embedding
        self._barred_V = None if allowed_V is None else ~allowed_V.to(weight.device)
        # Routers compute in float32 whatever the model does.
        exact = weight.dtype is not torch.bfloat16 or "router" in map(role_of, model.parameters())
        least = _LEAST_ROWS if weight.device.type == "cpu" and exact else 1
        self._cache = model.cache(max(slots, least), self.max_len)
        self._cache.least_rows = least
        self._rows: list[_Row] = []  # by slot: those that decode, then one that may be reading
        self._waiting: deque[_Row] = deque()
        self._prefixes: OrderedDict[tuple[int, ...], list[Tensor]] = OrderedDict()
        self._version, self._tickets, self._decoded = 0, 0, True
        if not self._alike():
            self._cache.least_rows = len(self._cache.lengths)

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    def submit(self, request: Request) -> int:
        """Its ticket. It begins as soon as a slot is free.

        Raises:
            ValueError: no prompt, or one that leaves no room for a token
        """
        if not 0 < len(request.prompt) <= self.max_len:
            raise ValueError(f"a prompt has 1 to {self.max_len} tokens, not {len(request.prompt)}")
        self._tickets += 1
        self._waiting.append(_Row(self._tickets, request, list(request.prompt)))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Forget a request, waiting or under way."""
        self._waiting = deque(row for row in self._waiting if row.ticket != ticket)
        for slot, row in enumerate(self._rows):
            if row.ticket == ticket:
                self._leave(slot)
                return

    def weights_changed(self) -> None:
        """Nothing that the old weights have computed serves a new row; rows under way go on."""
        self._version += 1
        self._prefixes.clear()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One block of a prompt, or one token of every row, in turns where there is both to do.

        Prompts are read in the order in which they came.
        """
        reading = bool(self._rows) and self._rows[-1].reading
        if not reading and self._waiting and len(self._rows) < self.slots:
            self._join(self._waiting.popleft())
            reading = True
        if reading and (self._decoded or len(self._rows) == 1):
            self._decoded = False
            return self._read(len(self._rows) - 1)
        self._decoded = True
        return self._decode(len(self._rows) - reading) if self._rows else []

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """The answers, in the order in which they are finished."""
        answers = {ticket: Answer(ticket) for ticket in map(self.submit, requests)}
        while answers:
            for event in self.step():
                if event.ticket not in answers:
                    continue
                answer = answers[event.ticket]
                answer.tokens.append(event.token)
                answer.logprobs.append(event.logprob)
                if event.reason is not None:
                    answer.reason = event.reason
                    yield answers.pop(event.ticket)

    @torch.inference_mode()
    def score(self, rows: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """The log-probability of each token but the first of each row: float32 (T − 1,)."""
        if self.busy:
            raise ValueError("texts are scored while no request is under way")
        for ids in rows:
            found = [torch.zeros(0)]
            for begin in range(0, len(ids) - 1, BLOCK):
                logits_TV = self._block(ids, begin, 0, last_only=False)
                following = torch.tensor(
                    ids[begin + 1 : begin + BLOCK + 1], device=logits_TV.device
                )
                logprobs_TV = logits_TV[: len(following)].float().log_softmax(-1)
                found.append(logprobs_TV.gather(1, following[:, None])[:, 0].cpu())
            self._cache.lengths[0] = 0
            yield torch.cat(found)

    def _join(self, row: _Row) -> None:
        """Behind the others, with what is remembered of its prompt."""
        prompt, row.version = tuple(row.request.prompt), self._version
        while row.read + BLOCK < len(prompt):
            places = self._prefixes.get(prompt[: row.read + BLOCK])
            if places is None:
                break
            self._prefixes.move_to_end(prompt[: row.read + BLOCK])
            kept = self._cache.block(len(self._rows), row.read // BLOCK)
            for there, place in zip(kept, places, strict=True):
                there.copy_(place)
            row.read += BLOCK
            self._cache.lengths[len(self._rows)] = row.read
        self._rows.append(row)

    def _leave(self, slot: int) -> None:
        """Close the gap: with the last row that decodes, and its place with the one that reads."""
        last, decoding = len(self._rows) - 1, len(self._rows) - self._rows[-1].reading
        gaps = [slot, decoding - 1, last] if slot < decoding else [slot]
        for gap, source in pairwise(dict.fromkeys(gaps)):
            self._cache.move(source, gap)
            self._rows[gap] = self._rows[source]
        self._rows.pop()
        self._cache.lengths[len(self._rows)] = 0

    def _read(self, slot: int) -> list[Event]:
        """The next block of a prompt; at its end, the first token."""
        row = self._rows[slot]
        prompt, begin = row.request.prompt, row.read
        logits_1V = self._block(prompt, begin, slot)
        row.read = min(begin + BLOCK, len(prompt))
        if row.version == self._version and row.read - begin == BLOCK:
            places = [held.clone() for held in self._cache.block(slot, begin // BLOCK)]
            self._keep(tuple(prompt[: row.read]), places)
        return [] if row.reading else self._draw([row], logits_1V)

    def _keep(self, prefix: tuple[int, ...], places: list[Tensor]) -> None:
        self._prefixes[prefix] = places
        size = sum(part.nbytes for part in places)
        while len(self._prefixes) * size > _PREFIX_BYTES:
            self._prefixes.popitem(last=False)

    def _block(self, ids: Sequence[int], begin: int, slot: int, last_only: bool = True) -> Tensor:
        """Logits (1 or T, V) behind a block of ids, which is filled up to its whole length."""
        block = list(ids[begin : begin + BLOCK])
        tokens_1T = torch.tensor([block + [0] * (BLOCK - len(block))])
        cache = self._cache.rows(slot, slot + 1, [len(block)])
        device = self.model.embedding.device
        output = self.model(tokens_1T.to(device), cache=cache, last_only=last_only)
        assert output.logits_BTV is not None
        return output.logits_BTV[0]

    def _decode(self, count: int) -> list[Event]:
        """One token for each of the first `count` rows."""
        rows = self._rows[:count]
        logits_RV = self._next([row.ids[-1] for row in rows], self._cache.least_rows)
        return self._draw(rows, logits_RV)

    def _next(self, tokens: list[int], least: int) -> Tensor:
        """Logits (R, V) behind one more token of each of the first rows, of at least `least`."""
        idle = max(0, least - len(tokens))
        tokens_R1 = torch.tensor([tokens + [0] * idle], device=self.model.embedding.device).T
        counts = [1] * len(tokens) + [0] * idle
        output = self.model(tokens_R1, cache=self._cache.rows(0, len(counts), counts))
        assert output.logits_BTV is not None
        return output.logits_BTV[: len(tokens), 0]

    @torch.inference_mode()
    def _alike(self) -> bool:
        """Whether a few rows have the same bytes among all, on this machine."""
        slots, least = len(self._cache.lengths), self._cache.least_rows
        tokens = [slot % len(self.model.embedding) for slot in range(slots)]
        found = []
        for count in {least, slots}:
            found.append(self._next(tokens[:count], least)[:least])
            self._cache.lengths = [0] * slots
        return all(torch.equal(found[0], other) for other in found)

    def _draw(self, rows: list[_Row], logits_RV: Tensor) -> list[Event]:
        """The next token of each row; rows that are over leave."""
        logits_RV = raw_RV = logits_RV.float()
        total_R1 = raw_RV.logsumexp(-1, keepdim=True)
        if self._barred_V is not None:
            logits_RV = logits_RV.masked_fill(self._barred_V, -torch.inf)
        for i, row in enumerate(rows):
            if row.request.edit is not None:
                logits_RV = logits_RV.index_copy(
                    0,
                    torch.tensor([i], device=logits_RV.device),
                    row.request.edit(logits_RV[i], row.ids)[None],
                )
        requests = [row.request for row in rows]
        ids_R = draw(
            logits_RV,
            [(r.temperature, r.top_k, r.top_p) for r in requests],
            [uniform(row.request.key, len(row.ids)) for row in rows],
        )
        found_R = (raw_RV.gather(1, ids_R[:, None]) - total_R1)[:, 0].tolist()
        events = []
        for i, (row, token) in enumerate(zip(rows, ids_R.tolist(), strict=True)):
            row.ids.append(token)
            top = []
            if row.request.logprobs:
                best = raw_RV[i].topk(row.request.logprobs)
                values = (best.values - total_R1[i]).tolist()
                top = list(zip(best.indices.tolist(), values, strict=True))
            events.append(Event(row.ticket, token, found_R[i], top, self._over(row)))
        for row, event in zip(rows, events, strict=True):
            if event.reason is not None:
                self._leave(self._rows.index(row))
        return events

    def _over(self, row: _Row) -> Reason | None:
        if row.ids[-1] in row.request.stop_ids:
            return "stop"
        if len(row.ids) - len(row.request.prompt) >= row.request.max_tokens:
            return "length"
        return "context" if len(row.ids) > self.max_len else None
