"""`kill -9` in the middle of publishing: what a publisher was told is safe arrives, in order per service."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.integration.messaging.events import QUICK, numbers_by_service
from tests.integration.messaging.listener import listening
from tests.integration.messaging.victim import SERVICES
from tests.support.ports import free_port
from tests.support.wait import eventually

from toska_mesh.messaging import open_event_sink

ROOT = Path(__file__).parents[3]


async def kill_while_publishing(url: str, folder: Path, first: int, after: int) -> list[int]:
    """The numbers that the victim reported safe before it was killed, which was after about `after` of them."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.messaging.victim", url, str(folder), str(first)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
    )
    assert process.stdout is not None
    safe: list[int] = []
    try:
        async with asyncio.timeout(30):
            while len(safe) < after:
                safe.append(int(await process.stdout.readline()))
    finally:
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
    return safe + [int(line) for line in rest.split(b"\n")[:-1] if line]


@pytest.mark.parametrize("has_broker", [True, False], ids=["with a broker", "while the broker is away"])
async def test_nothing_that_was_safe_is_missing_after_three_kills(rabbitmq, tmp_path, has_broker):
    url = rabbitmq.url if has_broker else f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    async with listening(rabbitmq.url, "IMeshEvent") as listener:
        safe: list[int] = []
        for life in range(3):
            safe += await kill_while_publishing(url, tmp_path, life * 1_000_000, 150 + 70 * life)
        async with open_event_sink(rabbitmq.url, tmp_path, "heir", CollectorRegistry(), options=QUICK) as sink:
            await eventually(lambda: sink.state.waiting == 0, seconds=30)
            wanted = set(safe)
            await eventually(lambda: wanted <= {one.message.port for one in listener.received}, seconds=10)
    for service, numbers in numbers_by_service(listener.received).items():
        assert numbers == sorted(numbers), f"{service} out of order"
    assert len(numbers_by_service(listener.received)) == SERVICES
