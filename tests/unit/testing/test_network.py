"""Connections in memory behave as sockets do, as far as a peer can tell."""

import asyncio
from typing import Any

import pytest

from toska_mesh.testing.network import Address, MemoryNetwork, MemoryTransport

HERE: Address = ("10.0.0.1", 80)


class Peer(asyncio.Protocol):
    """Keeps what it is told, in order."""

    def __init__(self, keeps_open: bool = False) -> None:
        self.heard: list[Any] = []
        self.transport: asyncio.Transport
        self._keeps_open = keeps_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def eof_received(self) -> bool:
        self.heard.append("eof")
        return self._keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append("reset" if exc else "lost")

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")


async def connected(network: MemoryNetwork, server: Peer, client: Peer) -> tuple[Peer, Peer]:
    async def accept() -> Peer:
        return server

    network.listen(HERE, accept)
    await network.connect(HERE, lambda: client)
    return client, server


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_written_arrives_in_order_and_both_know_both_addresses(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    client.transport.writelines([b"one", b"two"])
    server.transport.write(bytearray(b"three"))
    assert server.heard == []  # not before the loop has turned
    await settle()
    assert (server.heard, client.heard) == ([b"onetwo"], [b"three"])
    assert server.transport.get_extra_info("sockname") == HERE
    assert client.transport.get_extra_info("peername") == HERE
    assert server.transport.get_extra_info("peername") == client.transport.get_extra_info("sockname")


async def test_a_close_lets_what_was_written_arrive_first(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    client.transport.write(b"last")
    client.transport.close()
    client.transport.write(b"too late")
    await settle()
    assert server.heard == [b"last", "eof", "lost"]
    assert client.heard == ["lost"]


async def test_after_half_a_close_the_other_half_still_speaks(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(keeps_open=True), Peer())
    client.transport.write_eof()
    await settle()
    server.transport.write(b"answer")
    server.transport.close()
    await settle()
    assert server.heard == ["eof", "lost"]
    assert client.heard == [b"answer", "eof", "lost"]


async def test_an_abort_is_a_reset_and_takes_what_was_on_its_way(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    client.transport.write(b"lost on the way")
    client.transport.abort()
    client.transport.abort()
    await settle()
    assert (server.heard, client.heard) == (["reset"], ["lost"])


async def test_a_slow_reader_holds_its_writer_up(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    server.transport.pause_reading()
    client.transport.write(b"x" * 100_000)
    await settle()
    assert client.heard == ["pause"]
    assert server.heard == []
    assert client.transport.get_write_buffer_size() == 100_000
    server.transport.resume_reading()
    await settle()
    assert client.heard == ["pause", "resume"]
    assert client.transport.get_write_buffer_size() == 0


async def test_nobody_listens(network: MemoryNetwork) -> None:
    with pytest.raises(ConnectionRefusedError):
        await network.connect(HERE, Peer)
    client, server = await connected(network, Peer(), Peer())
    network.stop_listening(HERE)
    with pytest.raises(ConnectionRefusedError):
        await network.connect(HERE, Peer)
    client.transport.write(b"still open")
    await settle()
    assert server.heard == [b"still open"]
    network.reset(HERE)
    await settle()
    assert client.heard == ["reset"]


async def test_what_is_cut_off_hears_nothing_and_is_not_even_refused(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    network.cut_off(HERE)
    client.transport.write(b"into the void")
    client.transport.close()
    server.transport.abort()
    await settle()
    assert (server.heard, client.heard) == (["lost"], ["lost"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await network.connect(HERE, Peer)
    network.reconnect(HERE)
    await connected(network, Peer(), Peer())


async def test_the_end_of_a_connection_is_told_to_whoever_asks(network: MemoryNetwork) -> None:
    client, server = await connected(network, Peer(), Peer())
    told: list[str] = []
    assert isinstance(server.transport, MemoryTransport)
    server.transport.when_lost(lambda: told.append("once"))
    client.transport.close()
    await settle()
    server.transport.when_lost(lambda: told.append("at once"))
    assert told == ["once", "at once"]
