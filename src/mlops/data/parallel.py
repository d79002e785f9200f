"""Doing one thing to many items at once, and waiting so that a signal can interrupt it.

The S3 library does not return for a signal: whoever waits for it directly waits until a silent
server is given up.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], None], items: Sequence[Item], threads: int) -> None:
    """Do work on every item; the first error ends it, and what has begun runs out.

    An interruption waits for nobody: what is written only counts when it is whole.

    Args:
        work: Called in several threads.
        items: On what.
        threads: How many at once.
    """
    queue = iter(items)
    ending = threading.Event()

    def go_on() -> None:
        for item in queue:
            if ending.is_set():
                return
            work(item)

    # A future for each thread and not for each item: there may be a million.
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(go_on) for _ in range(min(threads, len(items)))]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        ending.set()  # unless there was an error all have come to their end
        for future in done:
            future.result()
    except Exception:
        pool.shutdown()
        raise
    except BaseException:
        ending.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def aside(call: Callable[[], Result]) -> Result:
    """Do one thing in another thread, and return what it returns."""
    results: list[Result] = []
    in_parallel(lambda each: results.append(each()), [call], 1)
    return results[0]
