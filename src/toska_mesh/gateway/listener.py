"""The public port: TLS, binding, and closing without losing a connection that the kernel has already accepted."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from toska_mesh.admin import port_in_use
from toska_mesh.errors import ConfigError
from toska_mesh.gateway.settings import GatewaySettings

BACKLOG = 4096

LAST_HANDSHAKE_SECONDS = 2.0
"""For the TLS handshake of a client that connected while the port was being closed."""


def server_tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    """The listener's TLS context, or None for plain HTTP. Raises ConfigError for unusable files."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    files = f"GATEWAY_TLS_CERT={settings.tls_cert!r} with GATEWAY_TLS_KEY={settings.tls_key!r}"
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_client_ca:
            files = f"GATEWAY_TLS_CLIENT_CA={settings.tls_client_ca!r}"
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"{files} is unusable; it should be PEM and belong together: {exc}") from exc
    return context


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
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:
        raise port_in_use(port, "GATEWAY_PORT", exc, host) from exc
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as exc:
        listening.close()
        raise port_in_use(port, "GATEWAY_PORT", exc, host) from exc
    return listening


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
        self._tls = server_tls(settings)
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
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._factory,
            sock=listening,
            ssl=self._tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=self._settings.header_timeout_seconds if self._tls is not None else None,
        )

    async def close(self) -> None:
        """Stop listening. Connections that clients have already made are taken first, so none of them is reset."""
        server, listening = self._server, self._socket
        self._server = self._socket = None
        if server is not None:
            server.close()
        if listening is None:
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
