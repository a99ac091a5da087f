"""The processes of one job: one, or those that torchrun started, on one machine or several.

    torchrun --nproc-per-node 4 -m llm.train hardware.parallel=fsdp

Rank 0 decides (prepares the data, claims the run, writes every file) and the others follow. Before
training they speak through torchrun's key-value store, which has no time-out to run into while
data are prepared and outlives them all, so that the reason of a failure reaches everybody: one
process prints one line, and all end with its exit code. In training they speak through
torch.distributed: NCCL between GPUs, gloo elsewhere.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, _abort_process_group
from torch.distributed.rendezvous import rendezvous

from llm.config.errors import Failed, Interrupted, PeerFailed, Refused

T = TypeVar("T")
#: Seconds between two looks at the store.
_PERIOD = 0.02
#: Seconds for a process to notice by itself that another one failed.
_PATIENCE = 10.0


class World:
    """What one process knows of the others. Enter it around the work of the whole job.

    Outside torchrun, and in a job of one process, nothing is started and every method is free.
    """

    # A sweep has several jobs in one process: one store, in which their words must not meet.
    _jobs = 0
    _all_stores: Any = None

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.launched = "WORLD_SIZE" in os.environ
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._store: Any = None
        self._said = 0
        self._left = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def __enter__(self) -> "World":
        if self.size > 1:
            World._jobs += 1
            World._all_stores = World._all_stores or next(rendezvous("env://"))[0]
            self._store = PrefixStore(f"job{World._jobs}", World._all_stores)
        return self

    def decide(self, decision: Callable[[], T]) -> T:
        """Rank 0's `decision()`, plain data, for everybody; they wait as long as it takes."""
        if self._store is None:
            return decision()
        self._said += 1
        key = f"decision{self._said}"
        if self.first:
            decided = decision()
            self._store.set(key, json.dumps(decided))
            return decided
        self._wait(key)
        return json.loads(self._store.get(key))

    def start(self, device: str) -> None:
        """Begin to speak through torch.distributed: GPUs by NCCL, the rest by gloo."""
        if self._store is None:
            return
        if device == "cuda":
            torch.cuda.set_device(self.local_rank)
        distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.size,
            device_id=torch.device("cuda", self.local_rank) if device == "cuda" else None,
        )

    def watch(self, last_words: Callable[[PeerFailed], None]) -> None:
        """End this process when another one has failed and this one does not notice.

        Whoever waits for the others' part of a sum waits for minutes where one of them has failed
        and yet lives, or where a network has no word for the end.

        Args:
            last_words: called before it ends
        """
        if self._store is not None:
            threading.Thread(target=self._watch, args=(last_words,), daemon=True).start()

    def _watch(self, last_words: Callable[[PeerFailed], None]) -> None:
        store = self._store
        while not self._left.wait(1.0):
            if store.check(["failure"]):
                failure = PeerFailed(*json.loads(store.get("failure")).values())
                if failure.args[0] != self.rank and not self._left.wait(_PATIENCE):
                    last_words(failure)
                    os._exit(failure.exit_code)

    def sum(self, tensor: Tensor) -> Tensor:
        """Summed over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def share(self, rows: int) -> slice:
        """This process's part of the rows of one micro-step."""
        own = rows // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._store is None:
            return
        met = problem
        if met is None or isinstance(met, Interrupted):
            try:
                self._part()
                return
            except (RuntimeError, PeerFailed) as broken:  # another one failed in its last lines
                met = broken
        cause = self.cause_of(met)
        if not isinstance(cause, PeerFailed):
            cause.own = True  # type: ignore[attr-defined]
        _hang_up()
        if not self.first and not isinstance(cause, PeerFailed):
            time.sleep(1.0)  # torchrun ends all with the first: rank 0 still writes run.json
        if cause is not problem:
            raise cause from met

    def _part(self) -> None:
        """Leave together: nobody hangs up while another still speaks, and rank 0 may write for
        longer than torch.distributed waits."""
        if not distributed.is_initialized():
            return
        if self.first:
            self._store.set("parting", "")
        else:
            self._wait("parting")
        distributed.barrier()
        distributed.destroy_process_group()

    def cause_of(self, problem: BaseException) -> BaseException:
        """What ended the job, where `problem` ended this process; the others learn of it.

        When a process dies, what it was speaking with the others breaks off, and they fail too,
        for a reason that is none. An interruption is no failure: all have agreed on it, and rank 0
        may need long for the last checkpoint.
        """
        if self._store is None or isinstance(problem, PeerFailed | Interrupted):
            return problem
        if _broke_off(problem):
            limit = time.monotonic() + 5.0  # the one that failed is about to say so
            while time.monotonic() < limit and not self._store.check(["failure"]):
                time.sleep(_PERIOD)
            problem = Failed("a process of this job died without a word (killed, out of memory?)")
        code = 2 if isinstance(problem, Refused) else 1
        mine = json.dumps({"rank": self.rank, "code": code, "reason": str(problem)})
        # Writes `mine` where nobody wrote yet, and answers what stands there.
        first = json.loads(self._store.compare_set("failure", "", mine))
        return problem if first["rank"] == self.rank else PeerFailed(*first.values())

    def _wait(self, key: str) -> None:
        while not self._store.check([key]):
            if self._store.check(["failure"]):
                raise PeerFailed(*json.loads(self._store.get("failure")).values())
            time.sleep(_PERIOD)


def _hang_up() -> None:
    """Leave in the middle of a conversation: the others notice at once."""
    if not distributed.is_initialized():
        return
    with suppress(RuntimeError):
        if distributed.get_backend() == "nccl":
            _abort_process_group()  # destroying would wait for the others
        else:
            distributed.destroy_process_group()


def _broke_off(problem: BaseException) -> bool:
    """Whether this is a failure of communication, whose cause lies elsewhere."""
    told = str(problem)
    return isinstance(problem, distributed.DistError) or (
        isinstance(problem, RuntimeError) and ("gloo" in told or "NCCL" in told)
    )
