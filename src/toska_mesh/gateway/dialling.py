"""Connections to instances: names are looked up, addresses tried one after the other, TLS peers verified.

An instance may be registered under a DNS name whose addresses change: every dial looks it up, so that a changed record
is followed without anybody being told. What an exchange does when a dial fails is its own business.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from toska_mesh.guard import DialError
from toska_mesh.model import Endpoint
from toska_mesh.telemetry import event_log

ATTEMPT_DELAY_SECONDS = 0.25
"""Head start of an address before the next one is tried beside it (RFC 8305 section 8)."""

MAX_LOOKUPS = 64
"""Names that are looked up at the same time. Each holds a thread, for as long as the system's resolver hangs."""

WARN_EVERY_SECONDS = 60.0
"""A certificate that cannot be verified is said again after this, per endpoint."""

log = event_log("gateway.dialling")


_P = TypeVar("_P", bound=asyncio.BaseProtocol)

Lookup = Callable[[str], Sequence[str]]
"""The addresses of a name, best first; blocks. Raises OSError or UnicodeError."""


def system_lookup(host: str) -> list[str]:
    """What this machine's resolver says, hosts file included."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Resolver:
    """Looks names up in threads of its own.

    The loop's own threads are few and shared: some names whose servers hang would hold up every other lookup of the
    process. And they are waited for at its end, which must not depend on a name server.
    """

    def __init__(self, patience_seconds: float, lookup: Lookup = system_lookup) -> None:
        self._patience_seconds = patience_seconds
        self._lookup = lookup
        self._running: dict[str, tuple[float, asyncio.Future[Sequence[str] | Exception]]] = {}
        self._threads = 0

    async def addresses(self, host: str) -> Sequence[str]:
        """Of a name, families alternating (RFC 8305 section 4). Raises OSError or UnicodeError.

        Dials of the same moment share one lookup. A lookup that takes longer than any dial would wait is not joined:
        the resolver may be well again.
        """
        loop = asyncio.get_running_loop()
        began_at, answer = self._running.get(host, (0.0, None))
        if answer is None or loop.time() - began_at > self._patience_seconds:
            if self._threads >= MAX_LOOKUPS:
                raise OSError("too many names are being looked up")
            answer = loop.create_future()
            self._running[host] = (loop.time(), answer)
            self._threads += 1
            threading.Thread(target=self._run, args=(host, loop, answer), name=f"look up {host}", daemon=True).start()
        found = await asyncio.shield(answer)
        if isinstance(found, Exception):
            raise found
        return found

    def _run(
        self, host: str, loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[Sequence[str] | Exception]"
    ) -> None:
        found: Sequence[str] | Exception
        try:
            found = _alternating(self._lookup(host))
        except Exception as exc:  # the thread has nobody to raise it to; the dial has
            found = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(self._finish, host, answer, found)

    def _finish(
        self, host: str, answer: "asyncio.Future[Sequence[str] | Exception]", found: Sequence[str] | Exception
    ) -> None:
        self._threads -= 1
        if self._running.get(host, (0.0, None))[1] is answer:
            del self._running[host]
        answer.set_result(found)


def _alternating(addresses: Sequence[str]) -> list[str]:
    """The first address's family first, then the two in turn; without repetitions."""
    unique = list(dict.fromkeys(addresses))
    same = [address for address in unique if (":" in address) == (":" in unique[0])]
    other = [address for address in unique if address not in same]
    return [address for pair in itertools.zip_longest(same, other) for address in pair if address is not None]


class Dialler:
    """Makes connections within one time limit for lookup, TCP and TLS together."""

    def __init__(self, timeout_seconds: float, resolver: Resolver | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._resolver = resolver or Resolver(timeout_seconds)
        self._warned: dict[Endpoint, float] = {}

    async def dial(
        self, endpoint: Endpoint, tls: ssl.SSLContext | None, make: Callable[[], _P]
    ) -> tuple[asyncio.Transport, _P]:
        """A transport with the protocol that `make` gives. Raises DialError."""
        host = endpoint.host
        # Neither belongs to the name that a certificate is for: the dot of a rooted name, the zone of an address.
        name = host.rstrip(".").partition("%")[0] if tls is not None else None
        loop = asyncio.get_running_loop()

        async def connect(address: str) -> tuple[asyncio.Transport, _P]:
            return await loop.create_connection(make, address, endpoint.port, ssl=tls, server_hostname=name)

        try:
            async with asyncio.timeout(self._timeout_seconds):
                if _is_address(host):
                    return await connect(host)
                return await _first(await self._resolver.addresses(host), connect)
        except TimeoutError:
            raise DialError("no connection in time") from None
        except ssl.SSLCertVerificationError as exc:
            self._warn(endpoint, exc.verify_message)
            reason = exc.verify_message.partition(", certificate is not valid for")[0]  # that would name the host
            raise DialError(f"certificate verification failed: {reason}") from exc
        except ssl.SSLError as exc:
            raise DialError(
                f"the TLS handshake failed: {(exc.reason or 'no reason').replace('_', ' ').lower()}"
            ) from exc
        except socket.gaierror as exc:
            raise DialError(f"the registered name has no address: {exc.strerror}") from exc
        except OSError as exc:
            raise DialError(f"cannot connect: {exc.strerror or exc}") from exc
        except UnicodeError as exc:
            raise DialError("cannot connect: the registered address is no host name") from exc

    def _warn(self, endpoint: Endpoint, reason: str) -> None:
        """Not for every request that meets it: it stays so until somebody does something."""
        now = asyncio.get_running_loop().time()
        if now < self._warned.get(endpoint, 0.0):
            return
        self._warned = {known: until for known, until in self._warned.items() if now < until}
        self._warned[endpoint] = now + WARN_EVERY_SECONDS
        log.warning(
            "certificate_not_verified",
            instance=endpoint.authority,
            reason=reason,
            remedy="GATEWAY_UPSTREAM_CA_FILE names the authorities that are believed",
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _first(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[tuple[asyncio.Transport, _P]]]
) -> tuple[asyncio.Transport, _P]:
    """The first connection that comes about ("Happy Eyeballs", RFC 8305 section 5). Raises OSError when none does."""
    if len(addresses) == 1:
        return await connect(addresses[0])
    made: list[tuple[asyncio.Transport, _P]] = []
    failures: list[OSError] = []
    one_is_over = asyncio.Event()

    async def attempt(address: str) -> None:
        try:
            made.append(await connect(address))
        except OSError as exc:
            failures.append(exc)
        one_is_over.set()

    is_kept = False
    try:
        async with asyncio.TaskGroup() as tasks:
            attempts = []
            for address in addresses:
                one_is_over.clear()
                attempts.append(tasks.create_task(attempt(address), name=f"dial {address}"))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ATTEMPT_DELAY_SECONDS):
                        await one_is_over.wait()
                if made:
                    break
            while not made and len(failures) < len(attempts):
                one_is_over.clear()
                await one_is_over.wait()
            for task in attempts:
                task.cancel()
        is_kept = bool(made)
    finally:
        for transport, _ in made[1:] if is_kept else made:
            transport.abort()  # it came second, or too late
    if made:
        return made[0]
    # What the peer is says more than that another address does not answer.
    raise next((failure for failure in failures if isinstance(failure, ssl.SSLError)), failures[0])
