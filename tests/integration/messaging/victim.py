"""A process to be killed: publishes numbered events, 20 at a time, and writes each number that it was told is safe.

Run as a module with the broker's URL, the data folder, and the first number.
"""

import asyncio
import sys
from itertools import count
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.integration.messaging.events import QUICK, registered

from toska_mesh.messaging import EventSink, open_event_sink

SERVICES = 20


async def main(url: str, folder: str, first: int) -> None:
    async with (
        open_event_sink(url, Path(folder), "victim", CollectorRegistry(), options=QUICK) as sink,
        asyncio.TaskGroup() as tasks,
    ):
        for service in range(SERVICES):
            tasks.create_task(publish_for_ever(sink, first + service))


async def publish_for_ever(sink: EventSink, first: int) -> None:
    """One publisher per service, so that each service's events have an order."""
    for number in count(first, SERVICES):
        await sink.publish(registered(number, SERVICES))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
