"""Working ahead in threads: what comes next is being read while the model is busy with what came before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R], things: Iterable[T], workers: int, depth: int
) -> Generator[tuple[T, Future[R]], None, None]:
    """Run `work` in threads, at most `depth` things ahead of whoever reads this, in order.

    Close the generator (`contextlib.closing`) where reading may end early: what has not begun is then cancelled. What
    `work` raises is raised by the future's `result()`.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for thing in things:
                waiting.append((thing, pool.submit(work, thing)))
                if len(waiting) > depth:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()
