"""Keeps Python's search for cyclic garbage from stopping the event loop for long.

What a request needs is freed by counting references; the collector only looks for cycles, and walks everything that
lives to do so. With 1,000 services and 2,000 instances a full collection takes some 50 ms of CPU, with 10,000 instances
90 ms, in which no request goes on (`bench/micro/change.py --pauses`), and nearly all it looks at is modules, settings
and the table, which stay. `gc.freeze` takes those out of its sight: the same collections then take less than 1 ms.

What is frozen is still freed when the last reference goes. Only a cycle among frozen objects would stay for ever, so
things are frozen seldom: at the first table, and when the table has grown to the double.
"""

import gc

_YOUNG_OBJECTS = 5_000
"""Objects more than before until the youngest are looked at: some 0.4 ms. Python's own 700 is for small programs."""
_ROUNDS = 20
"""Collections of one age before one of the next."""
_WORTH_FREEZING = 50
"""Instances below which the table is small beside the program itself."""


class CalmCollector:
    """One per process, as the collector is."""

    def __init__(self) -> None:
        gc.set_threshold(_YOUNG_OBJECTS, _ROUNDS, _ROUNDS)
        self._frozen_instances: int | None = None

    def table_in_use(self, instances: int) -> None:
        """Call after a table was taken into use; `instances` is how many it has."""
        if self._frozen_instances is None:
            gc.collect()  # nobody is served yet
        elif instances > max(_WORTH_FREEZING, 2 * self._frozen_instances):
            gc.collect(1)  # young garbage is not kept for ever; to look at all would be the pause that is avoided
        else:
            return
        self._frozen_instances = instances
        gc.freeze()
