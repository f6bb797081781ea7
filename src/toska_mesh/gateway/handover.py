"""A newly started gateway takes over from the running one: the sockets pass from process to process.

The running gateway listens on a Unix socket (`GATEWAY_HANDOVER_PATH`). A new process of the same user connects, gets
the listening sockets themselves (SCM_RIGHTS, unix(7)), starts its workers, and when all of them are ready tells the
running one, which drains and ends. The kernel's queues of new connections belong to the sockets and outlive both. When
the new one fails before that, the connection ends and the running one goes on as if nothing had happened.

One message per packet, JSON: `hello` from the new one; `offer`, with the descriptors, or `refusal`; `ready`; `yours`.
"""

import array
import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from toska_mesh import __version__
from toska_mesh.errors import ConfigError, MeshError
from toska_mesh.telemetry import event_log

PROTOCOL = 1
ANSWER_SECONDS = 5.0
"""For each answer of the running gateway: it only has to look up what it has."""
ACCEPT_PAUSE_SECONDS = 1.0
"""Before a newcomer is accepted again after that failed: most likely for want of descriptors."""

_MAX_PACKET = 4096
_MAX_DESCRIPTORS = 64
_CREDENTIALS = struct.Struct("3i")

log = event_log("gateway.handover")


class HandoverError(MeshError):
    """The running gateway cannot be taken over from; it goes on."""


@dataclass(eq=False)
class Sockets:
    """What passes from one gateway to the next. Whoever has it closes it."""

    listener: list[socket.socket] = field(default_factory=list)
    admin: list[socket.socket] = field(default_factory=list)
    handover: list[socket.socket] = field(default_factory=list)
    limit_table: int | None = None
    """Descriptor of the shared rate limit; None when the other one keeps it in another form."""

    def close(self) -> None:
        for sock in (*self.listener, *self.admin, *self.handover):
            sock.close()
        if self.limit_table is not None:
            os.close(self.limit_table)
            self.limit_table = None


class Predecessor:
    """The running gateway, as the new one sees it. Its methods do not block the loop."""

    def __init__(self, connection: socket.socket, sockets: Sockets, pid: int, version: str) -> None:
        self._connection = connection
        self.sockets = sockets
        self.pid = pid
        self.version = version

    async def dismiss(self) -> None:
        """Tell it that we are ready. Returns when it takes no new requests; if it has ended, that will do too."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._say_ready)
        self.close()

    def _say_ready(self) -> None:
        self._connection.settimeout(ANSWER_SECONDS)
        self._connection.send(orjson.dumps({"say": "ready"}))
        self._connection.recv(_MAX_PACKET)

    def close(self) -> None:
        """Without `dismiss` before it: it goes on."""
        self._connection.close()


def find_predecessor(path: str) -> Predecessor | None:
    """Ask the gateway that listens on the path for its sockets; None when there is none. Blocks for a while.

    Raises HandoverError when there is one and it does not hand over, ConfigError when the path is something else.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER_SECONDS)
    try:
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as exc:
            raise ConfigError(f"GATEWAY_HANDOVER_PATH={path!r} cannot be used: {exc.strerror or exc}") from exc
        if uid_of(connection) != os.geteuid():
            raise HandoverError(f"the process that listens on {path!r} belongs to another user")
        try:
            connection.send(orjson.dumps({"say": "hello", "protocol": PROTOCOL, "version": __version__}))
            offer, descriptors = _receive_with_descriptors(connection)
        except TimeoutError:
            raise HandoverError(f"the gateway that listens on {path!r} does not answer") from None
        except (OSError, ValueError) as exc:
            raise HandoverError(f"the gateway that listens on {path!r} does not hand over: {exc}") from exc
        return _read_offer(connection, offer, descriptors)
    except BaseException:
        connection.close()
        raise


def _read_offer(connection: socket.socket, offer: dict[str, Any], descriptors: list[int]) -> Predecessor:
    if offer.get("say") != "offer" or len(descriptors) != len(offer["descriptors"]):
        for descriptor in descriptors:
            os.close(descriptor)
        raise HandoverError(
            f"the running gateway does not hand over: {offer.get('why', 'its offer is not understood')}"
        )
    sockets = Sockets()
    for name, descriptor in zip(offer["descriptors"], descriptors, strict=True):
        match name:
            case "listener" | "admin" | "handover":
                getattr(sockets, name).append(socket.socket(fileno=descriptor))
            case "limit" if offer["version"] == __version__:
                sockets.limit_table = descriptor
            case _:
                os.close(descriptor)  # of a release that knows more, or keeps it otherwise
    return Predecessor(connection, sockets, offer["pid"], offer["version"])


class HandoverServer:
    """The running gateway's side. One newcomer at a time; others wait.

    `offer`: gives the sockets, which stay ours. `step_down`: called when the newcomer is ready; from its return on it
    may serve alone, and the handover socket is its own.
    """

    def __init__(
        self,
        listening: socket.socket,
        offer: Callable[[], Sockets],
        step_down: Callable[[], Awaitable[None]],
        patience_seconds: float,
    ) -> None:
        """`patience_seconds`: how long a newcomer may take to become ready."""
        self._listening = listening
        self._offer = offer
        self._step_down = step_down
        self._patience_seconds = patience_seconds
        listening.setblocking(False)

    async def run(self) -> None:
        """Until a newcomer has taken over, or cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as exc:
                log.warning("handover_failed", reason=f"{type(exc).__name__}: {exc}", consequence="this one goes on")
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            try:
                if await self._serve(connection):
                    return
            except (OSError, ValueError, KeyError, TypeError) as exc:
                log.warning("handover_failed", reason=f"{type(exc).__name__}: {exc}", consequence="this one goes on")
            finally:
                connection.close()

    async def _serve(self, connection: socket.socket) -> bool:
        """Whether the newcomer took over."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        uid = uid_of(connection)
        if uid != os.geteuid():
            log.warning("handover_refused", uid=uid, reason="only the same user may take over")
            return False
        async with asyncio.timeout(ANSWER_SECONDS):
            hello = orjson.loads(await loop.sock_recv(connection, _MAX_PACKET))
        if hello["say"] != "hello" or hello["protocol"] != PROTOCOL:
            why = f"protocol {hello['protocol']!r} is not understood; this release speaks {PROTOCOL}"
            connection.send(orjson.dumps({"say": "refusal", "why": why}))
            return False
        log.info("handover_begins", version=hello["version"])
        self._send_offer(connection)
        try:
            async with asyncio.timeout(self._patience_seconds):
                answer = await loop.sock_recv(connection, _MAX_PACKET)
        except TimeoutError:
            answer = b""
        if not answer or orjson.loads(answer)["say"] != "ready":
            log.warning(
                "handover_failed", reason="the new process did not become ready", consequence="this one goes on"
            )
            return False
        await self._step_down()
        log.info("handed_over", version=hello["version"])
        with contextlib.suppress(OSError):
            connection.send(orjson.dumps({"say": "yours"}))
        return True

    def _send_offer(self, connection: socket.socket) -> None:
        sockets = self._offer()
        named = [("listener", sock.fileno()) for sock in sockets.listener]
        named += [("admin", sock.fileno()) for sock in sockets.admin]
        named += [("handover", sock.fileno()) for sock in sockets.handover]
        if sockets.limit_table is not None:
            named.append(("limit", sockets.limit_table))
        names, descriptors = zip(*named, strict=True)
        offer = {"say": "offer", "pid": os.getpid(), "version": __version__, "descriptors": names}
        socket.send_fds(connection, [orjson.dumps(offer)], list(descriptors))


def _receive_with_descriptors(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """As `socket.recv_fds`, but no child process inherits what comes. Raises OSError at the end of the connection."""
    numbers = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(
        _MAX_PACKET, socket.CMSG_LEN(_MAX_DESCRIPTORS * numbers.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    if not data:
        raise ConnectionResetError("closed without an answer")
    said: dict[str, Any] = orjson.loads(data)
    return said, list(numbers)


def uid_of(connection: socket.socket) -> int:
    """Of the process at the other end, as it was when it connected or began to listen."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


def listen(path: str) -> socket.socket:
    """The handover socket, for this user alone; a socket that nobody listens on any more is replaced.

    Raises ConfigError when the path cannot be used.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"GATEWAY_HANDOVER_PATH={path!r} exists and is no socket; name another path")
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listening.bind(path)
        listening.listen(8)
    except OSError as exc:
        listening.close()
        raise ConfigError(f"GATEWAY_HANDOVER_PATH={path!r} cannot be used: {exc.strerror or exc}") from exc
    finally:
        os.umask(before)
    return listening
