"""What a kill leaves, and how much memory a run takes: looked at from outside, in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
from small_weights import add_files, assert_equal, fine_tuned, llama, load, original_delta, original_sum, save

from gpt4roi.checkpoint.delta import plan_apply
from gpt4roi.models.original_format import to_ours

ROWS = 400_000
KILLS = 10
LIMIT_BYTES = 64 * 10**6


def apply(place: Path) -> None:
    plan_apply(place / "base", place / "delta", place / "out", max_shard_size="3MB", overwrite=True).write()


def apply_and_report(place: Path, queue) -> None:
    before = peak_bytes()
    apply(place)
    queue.put(peak_bytes() - before)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have everything imported, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpt4roi.checkpoint.delta"])
    return context


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base of 51 MB in float32 and its delta of 26 MB, nearly all of it in the two tables."""
    place = tmp_path_factory.mktemp("large")
    base = llama(rows=ROWS)
    save(place / "base", base)
    add_files(save(place / "delta", original_delta(base, fine_tuned(base)), "bin"), ROWS)
    return place


def run(processes, target, *arguments) -> None:
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def wait_for_writing(process, place: Path) -> float:
    """Waits until the unfinished folder appears and returns the time."""
    while process.is_alive() and not (place / "out.partial").exists():
        time.sleep(0.001)
    return time.perf_counter()


@pytest.mark.heavy
def test_killed_at_ten_random_moments_of_writing_the_target_is_absent_or_whole(processes, place):
    first = processes.Process(target=apply, args=(place,))
    first.start()
    started = wait_for_writing(first, place)
    first.join()
    seconds = time.perf_counter() - started
    whole = sorted(path.name for path in (place / "out").iterdir())
    moments = random.Random(0)
    unfinished = 0
    for number in itertools.count():
        if number >= KILLS and unfinished:
            break
        if number % 2:
            remove_result(place)
        process = processes.Process(target=apply, args=(place,))
        process.start()
        wait_for_writing(process, place)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:  # it was done before: a later kill comes sooner
            seconds /= 2
        found = sorted(path.name for path in (place / "out").iterdir()) if (place / "out").exists() else None
        assert found in (None, whole)
        unfinished += (place / "out.partial").exists()
    run(processes, apply, place)
    base = llama(rows=ROWS)
    delta = original_delta(base, fine_tuned(base))
    assert_equal(load(place / "out"), {to_ours(name): tensor for name, tensor in original_sum(base, delta).items()})
    assert sorted(path.name for path in place.iterdir()) == ["base", "delta", "out"]


def remove_result(place: Path) -> None:
    """Removes the result, so that the next run has nothing to replace."""
    for path in (place / "out").iterdir() if (place / "out").exists() else ():
        path.unlink()
    if (place / "out").exists():
        (place / "out").rmdir()


@pytest.mark.heavy
def test_the_peak_of_memory_over_the_imports_stays_below_64_mb_for_a_table_of_51_mb(processes, place):
    queue = processes.SimpleQueue()
    run(processes, apply_and_report, place, queue)
    assert queue.get() < LIMIT_BYTES
