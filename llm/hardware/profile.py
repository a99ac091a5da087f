"""A trace of three steps, to be opened in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from pathlib import Path
from typing import Any

from torch import profiler as torch_profiler


def profiler(folder: Path, wanted: bool) -> Any:
    """A context whose `step()` counts steps; writes `folder/trace.json` of steps 3 to 5.

    Without `wanted` it does nothing and writes nothing.
    """
    if not wanted:
        return _Nothing()
    return torch_profiler.profile(
        schedule=torch_profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / "trace.json")),
        record_shapes=True,
    )


class _Nothing:
    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def step(self) -> None:
        pass
