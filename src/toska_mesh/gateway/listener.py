"""The public port: TLS, binding, and closing without losing a connection that the kernel has already accepted."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509

from toska_mesh.admin import port_in_use
from toska_mesh.errors import ConfigError
from toska_mesh.gateway.settings import GatewaySettings

BACKLOG = 4096

LAST_HANDSHAKE_SECONDS = 2.0
"""For the TLS handshake of a client that connected while the port was being closed."""


class ListenerContext(ssl.SSLContext):
    """The listener's TLS context; one is never changed once it is in use, a new one takes its place."""

    sslobject_class: type[ssl.SSLObject]
    expires_at: float | None = None
    """When the certificate expires, in Unix seconds."""
    failures: Counter[str]
    """Handshakes that failed, by whose fault it was; shared by a listener's contexts."""


class _Handshake(ssl.SSLObject):
    """A handshake whose refusal reaches the client.

    Event loops close the connection as soon as a handshake fails, and the alert that says why ("certificate required",
    "certificate expired") stays in the buffer. Asking for more input first makes them send it.
    """

    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as exc:
            context = self.context
            if isinstance(context, ListenerContext):
                context.failures[_fault(exc)] += 1
            if not _is_told(exc):
                raise
            self._failure = exc
            raise ssl.SSLWantReadError from exc


FAULTS = ("client-certificate", "protocol")


_NOTHING_IN_COMMON = ("UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER")


def _fault(exc: ssl.SSLError) -> str:
    reason = exc.reason or ""
    return FAULTS[0] if "CERTIFICATE" in reason and "ALERT" not in reason else FAULTS[1]


def _is_told(exc: ssl.SSLError) -> bool:
    """Whether the client speaks TLS, and would close after an alert; one that sends something else would just wait."""
    return _fault(exc) == FAULTS[0] or exc.reason in _NOTHING_IN_COMMON


def server_tls(settings: GatewaySettings, failures: Counter[str] | None = None) -> ListenerContext | None:
    """The listener's TLS context, or None for plain HTTP. Raises ConfigError for unusable files."""
    if not settings.tls_cert:
        return None
    context = ListenerContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Handshake
    context.failures = Counter() if failures is None else failures
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    files = f"GATEWAY_TLS_CERT={settings.tls_cert!r} with GATEWAY_TLS_KEY={settings.tls_key!r}"
    try:
        # Without a password function OpenSSL would ask for one at the terminal, and wait.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
        context.expires_at = _expires_at(settings.tls_cert)
        if settings.tls_client_ca:
            files = f"GATEWAY_TLS_CLIENT_CA={settings.tls_client_ca!r}"
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise ConfigError(f"{files} is unusable; it should be PEM and belong together: {exc}") from exc
    return context


def _expires_at(path: str) -> float:
    """Of the first certificate in the file, the one that clients are shown."""
    return x509.load_pem_x509_certificates(Path(path).read_bytes())[0].not_valid_after_utc.timestamp()


def upstream_tls(settings: GatewaySettings) -> ssl.SSLContext:
    """For instances with `scheme=https`: verified by default. Raises ConfigError for an unusable CA file."""
    try:
        context = ssl.create_default_context(cafile=settings.upstream_ca_file or None)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"GATEWAY_UPSTREAM_CA_FILE={settings.upstream_ca_file!r} is unusable: {exc}") from exc
    if not settings.upstream_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def bind(settings: GatewaySettings) -> socket.socket:
    """A listening socket on the public port. Raises ConfigError when the port or the address cannot be had."""
    return bind_all(settings.host, settings.port, "GATEWAY_PORT")[0]


def bind_all(host: str, port: int, variable: str, count: int = 1) -> list[socket.socket]:
    """Listening sockets on the port, one for each of the first `count` addresses of the host.

    Raises ConfigError, which names the variable of the port, when the port or the address cannot be had.
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in addresses(host, port, variable)[:count]:
            # A free port that was chosen for the first address is the port of all.
            where = address if not bound else (address[0], bound[0].getsockname()[1], *address[2:])
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            if family == socket.AF_INET6 and count > 1:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(where)
            sock.listen(BACKLOG)
    except OSError as exc:
        for sock in bound:
            sock.close()
        raise port_in_use(port, variable, exc, host) from exc
    return bound


def addresses(host: str, port: int, variable: str) -> list[tuple[Any, ...]]:
    """What to bind for a host and a port, as `socket.getaddrinfo` says it. Raises ConfigError for an unknown host."""
    try:
        found: list[tuple[Any, ...]] = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as exc:
        raise port_in_use(port, variable, exc, host) from exc
    return list(dict.fromkeys(found))


class Listener:
    """Accepts clients. Raises ConfigError from `open` when the port cannot be had.

    `inherited` is a socket that is listening already and shared with other processes.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        factory: Callable[[], asyncio.Protocol],
        inherited: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._factory = factory
        self.tls_failures: Counter[str] = Counter()
        """TLS handshakes that failed, by `FAULTS`."""
        self._tls = server_tls(settings, self.tls_failures)
        self._socket = inherited
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        listening = self._socket or bind(self._settings)
        listening.setblocking(False)
        # The copy keeps the kernel's queue alive while the loop's own socket is closed: see `close`.
        self._socket = listening.dup()
        self._socket.setblocking(False)
        self.port = int(listening.getsockname()[1])
        self._server = await self._serve(listening, self._tls)

    @property
    def tls_expires_at(self) -> float | None:
        """When the certificate in use expires, in Unix seconds."""
        return self._tls.expires_at if self._tls is not None else None

    def load_tls(self) -> ListenerContext | None:
        """What the files hold now. Raises ConfigError. May be called in another thread."""
        return server_tls(self._settings, self.tls_failures)

    async def use_tls(self, context: ListenerContext | None) -> None:
        """New handshakes are made with this; open connections, and handshakes that have begun, go on as they are.

        The new context has ticket keys of its own: a session from before is not resumed, so nobody gets in on the
        word of an authority that is gone.
        """
        if self._socket is None or self._server is None:
            self._tls = context
            return
        server = await self._serve(self._socket.dup(), context)
        self._tls = context  # only now: when that fails, the old one serves on, and its expiry is what is told
        if self._server is None:  # closed meanwhile
            server.close()
            return
        previous, self._server = self._server, server
        previous.close()

    async def _serve(self, listening: socket.socket, tls: ListenerContext | None) -> asyncio.Server:
        listening.setblocking(False)
        return await asyncio.get_running_loop().create_server(
            self._factory,
            sock=listening,
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=self._settings.header_timeout_seconds if tls is not None else None,
        )

    async def close(self) -> None:
        """Stop listening. Connections that clients have already made are taken first, so none of them is reset."""
        server, listening = self._server, self._socket
        self._server = self._socket = None
        if server is not None:
            server.close()
        if listening is None:
            return
        if server is None:
            listening.close()  # never opened: whoever waits there is not ours to serve
            return
        accepted = []
        try:
            while True:
                try:
                    accepted.append(listening.accept()[0])
                except OSError:
                    break
        finally:
            listening.close()
        async with asyncio.TaskGroup() as tasks:
            for client in accepted:
                tasks.create_task(self._take(client), name="take an accepted client")

    async def _take(self, client: socket.socket) -> None:
        """One that is gone already, or says nothing to start TLS with, must not hold up the others."""
        client.setblocking(False)
        timeout = LAST_HANDSHAKE_SECONDS if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, client, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError:
            client.close()
