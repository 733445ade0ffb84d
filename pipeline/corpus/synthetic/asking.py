"""Many requests to one endpoint, a few at a time, as far as the money goes.

In: a function that asks for number i, and how many there are. Out: `(i, what came)` as they come: what the function
returned, or the `EndpointError` it raised. Threads that still wait when the process is stopped end with it; what they
would have answered is asked again by the next run.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from pipeline.corpus.synthetic.endpoint import CostCapReached, EndpointError
from pipeline.system.errors import UserError

MOST_FAILURES = 5  # one after another: it will not get better by itself


def ask_all(ask: Callable[[int], Any], count: int, concurrency: int) -> Iterator[tuple[int, Any]]:
    """Raises `CostCapReached` once a request could pass the cap and none is under way that might turn out cheaper;
    `UserError` where the endpoint fails again and again; and whatever else `ask` raises."""
    results: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    pending, running, waiting, failed = deque(range(count)), 0, False, 0

    def work(number: int) -> None:
        try:
            results.put((number, ask(number), None))
        except BaseException as error:
            results.put((number, None, error))

    while pending or running:
        while pending and running < concurrency and not waiting:
            threading.Thread(target=work, args=(pending.popleft(),), daemon=True).start()
            running += 1
        number, answer, error = results.get()
        running -= 1
        waiting = False
        if isinstance(error, CostCapReached):
            if not running:
                raise error
            pending.appendleft(number)
            waiting = True  # what is under way may cost less than it might
        elif isinstance(error, EndpointError):
            failed += 1
            if failed >= MOST_FAILURES:
                raise UserError(
                    f"the endpoint failed {failed} times in a row, last: {error}. What was answered is kept; the same "
                    "command goes on"
                )
            yield number, error
        elif error is not None:
            raise error
        else:
            failed = 0
            yield number, answer
