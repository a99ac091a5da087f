"""A trace of three steps, to be opened in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import profiler as torch_profiler


class _NoProfiler:
    def __enter__(self) -> "_NoProfiler":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def step(self) -> None:
        pass


def profiler(folder: Path, wanted: bool) -> AbstractContextManager[Any]:
    """Writes `folder/trace.json` of steps 3 to 5; does nothing unless wanted."""
    if not wanted:
        return _NoProfiler()
    return torch_profiler.profile(
        schedule=torch_profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / "trace.json")),
        record_shapes=True,
    )
