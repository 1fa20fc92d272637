"""Threads whose results come in the order of the jobs, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["in_order"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    jobs: Iterable[Job], work: Callable[[Job], tuple[Result, int]], *, workers: int, ahead: int, limit: int
) -> Iterator[Result]:
    """Yield ``work``'s results in the order of the jobs, whichever thread is done first.

    Args:
        jobs: Consumed lazily, in the calling thread, at most ``workers + ahead`` beyond what has been yielded.
        work: Job to (result, bytes that the result holds). What it raises is raised in the result's place.
        workers: Threads.
        ahead: Results that may wait for an earlier one.
        limit: Bytes of results that may wait, beyond the one that each thread holds.
    """
    changed = threading.Condition()
    held = turn = 0
    over = False

    def task(number: int, job: Job) -> tuple[Result, int]:
        nonlocal held
        result, size = work(job)
        with changed:
            # The one whose turn it is goes ahead, however large it is: what waits can only go after it.
            changed.wait_for(lambda: over or number == turn or held + size <= limit)
            held += size
        return result, size

    pool = ThreadPoolExecutor(workers, thread_name_prefix="zoo-ordered")
    waiting: deque[Future[tuple[Result, int]]] = deque()
    remaining = enumerate(jobs)
    try:
        while True:
            for number, job in islice(remaining, workers + ahead - len(waiting)):
                waiting.append(pool.submit(task, number, job))
            if not waiting:
                return
            result, size = waiting.popleft().result()
            with changed:
                held -= size
                turn += 1
                changed.notify_all()
            yield result
    finally:
        with changed:
            over = True
            changed.notify_all()
        pool.shutdown(cancel_futures=True)
