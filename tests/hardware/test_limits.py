"""What a process may take of a machine, by files as Linux writes them."""

import os

import pytest
import torch

from llm.hardware import limits, machine
from llm.hardware.machine import Hardware, Machine
from llm.hardware.world import World


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """Eight threads of four cores, and a container's files: call it with their contents."""

    def write(**cgroup: str) -> None:
        for n in range(8):
            place = tmp_path / f"cpu{n}/topology"
            place.mkdir(parents=True, exist_ok=True)
            (place / "thread_siblings_list").write_text(f"{n % 4},{n % 4 + 4}\n")
        for name, content in cgroup.items():
            (tmp_path / name.replace("_", ".")).write_text(content)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "_CPUS", tmp_path)
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    return write


@pytest.mark.parametrize(
    ("quota", "threads", "cores"),
    [("max 100000", 8, 4), ("600000 100000", 6, 4), ("250000 100000", 2, 2), ("5000 100000", 1, 1)],
)
def test_cores_within_a_quota(linux, quota, threads, cores):
    linux(cpu_max=quota)
    assert (limits.cores(), limits.physical_cores()) == (threads, cores)


def test_memory_within_a_limit(linux):
    free = limits.free_memory()
    linux(memory_max="3000\n", memory_current="1000\n")
    assert limits.free_memory() == 2000 < free
    linux(memory_max="max\n")
    assert limits.free_memory() > 2000


@pytest.mark.parametrize(
    ("asked", "processes", "threads"),
    [(None, 1, 3), ("7", 1, 7), ("1", 1, 1), ("1", 2, 2), (None, 3, 1), ("5", 2, 5), ("1", 9, 1)],
)
def test_threads_of_a_process(linux, monkeypatch, asked, processes, threads):
    """torchrun sets OMP_NUM_THREADS=1 for several processes; any other value is the user's."""
    linux(cpu_max="max 100000")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert machine._threads(processes) == threads
    linux(cpu_max="200000 100000")
    assert machine._threads(1) == (2 if asked is None else int(asked))


def test_auto_is_what_the_cpu_multiplies(bf16_products):
    found = Hardware(device="cpu", precision="auto", threads=None).resolve()
    assert found.precision == ("bf16" if bf16_products else "fp32")


def test_a_resume_takes_the_threads_it_began_with_among_as_many_processes(monkeypatch):
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(machine, "_threads", lambda local_size: 8 // local_size)
    world = World()
    world.size = world.local_size = 2
    for threads, known in (
        (None, {}),
        (None, {"threads": 3, "processes": 2}),
        (None, {"threads": 3, "processes": 1}),
        (5, {"threads": 3}),
    ):
        hardware = Hardware(device="cpu", precision="fp32", threads=threads)
        hardware.start(Machine("cpu", "fp32"), known, world)
    assert taken == [4, 3, 4, 5]
