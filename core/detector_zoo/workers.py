"""Threads that prepare images ahead of the forward pass, bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Budget:
    """Bytes that may be held at a time. One holder may always go ahead, however large it is."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.waiting = 0
        self._closed = False
        self._changed = threading.Condition()

    def _fits(self, size: int) -> bool:
        return self._closed or self.held == 0 or self.held + size <= self.limit

    def try_acquire(self, size: int) -> bool:
        """Take ``size`` bytes if there is room."""
        with self._changed:
            if not self._fits(size):
                return False
            self.held += size
            return True

    def acquire(self, size: int, on_wait: Callable[[], None]) -> None:
        """Take ``size`` bytes; when that has to wait, ``on_wait`` is called once before it does."""
        with self._changed:
            if not self._fits(size):
                self.waiting += 1
                on_wait()
                self._changed.wait_for(lambda: self._fits(size))
                self.waiting -= 1
            self.held += size

    def release(self, size: int) -> None:
        """Give ``size`` bytes back."""
        with self._changed:
            self.held -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let every waiter go: the run is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def stream(
    jobs: Iterable[Job],
    work: Callable[[Job], tuple[Result, int]],
    budget: Budget,
    *,
    workers: int,
    ahead: int,
) -> Iterator[Result | None]:
    """Yield ``work``'s results as they come, and None whenever a worker waits for ``budget``.

    Args:
        jobs: Consumed lazily, at most ``workers + ahead`` beyond what has been yielded.
        work: Job to (result, bytes that the result holds); the consumer releases those bytes.
        budget: On None the consumer must release something, or hold nothing.
        workers: Threads; with 0 the work is done in the calling thread, in order.
        ahead: Results that may wait to be consumed.
    """
    if workers == 0:
        for job in jobs:
            result, size = work(job)
            while not budget.try_acquire(size):
                yield None
            yield result
        return

    results: SimpleQueue[Result | BaseException | None] = SimpleQueue()

    def task(job: Job) -> None:
        try:
            result, size = work(job)
        # Carried to the consumer, which raises it: a thread's own traceback would be lost.
        except BaseException as error:  # noqa: BLE001
            results.put(error)
            return
        budget.acquire(size, on_wait=lambda: results.put(None))
        results.put(result)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="zoo-prepare")
    outstanding = 0
    try:
        remaining = iter(jobs)
        exhausted = False
        while outstanding or not exhausted:
            while not exhausted and outstanding < workers + ahead:
                try:
                    job = next(remaining)
                except StopIteration:
                    exhausted = True
                    break
                pool.submit(task, job)
                outstanding += 1
            if not outstanding:
                break
            try:
                # A worker that began to wait while the queue was full has had its one signal consumed by now.
                received = results.get(timeout=0.1 if budget.waiting else None)
            except Empty:
                received = None
            if isinstance(received, BaseException):
                raise received
            if received is not None:
                outstanding -= 1
            yield received
    finally:
        budget.close()
        pool.shutdown(cancel_futures=True)
