"""The one place that speaks HTTP to Consul: token, TLS, deadlines, and the translation of every failure.

aiohttp rather than py-consul: its asyncio client cannot bound a call in time, blocks the loop while it parses large
answers, hides status codes and `Retry-After`, and brings `requests` along (see the ADR "follow the registry").
"""

import asyncio
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from toska_mesh.errors import ConfigError, InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model.rules import mask_credentials
from toska_mesh.registry.consul.options import ConsulOptions

_NO_PARAMS: Mapping[str, str] = {}
_LONGEST_TEXT = 1000
"""Characters of a refusal that are worth showing."""


class ThrottledError(RegistryUnavailableError):
    """429 or 503 with `Retry-After`: the registry says itself when to come back."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class SessionLostError(RegistryError):
    """The session named in a request does not exist (any more): expired, destroyed or wiped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx or an expected 404. `index` is X-Consul-Index, None when the answer carries none."""

    status: int
    body: bytes
    index: int | None = None


class ConsulApi(Protocol):
    """What the rest of this package needs of the HTTP layer; unit tests fake this and nothing else."""

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        """One request.

        `path` begins with `/v1/` and is already quoted (see `segment`). `deadline` is a point on the loop's clock;
        `limit_seconds` replaces the client's own bound (blocking queries). The earlier of both holds.

        Returns any 2xx, and with `missing_ok` also a 404 that says "no such thing" (and not "no such page": whoever
        says that is no Consul, and its answer is not to be read as emptiness).

        Raises RegistryUnavailableError (no answer in time, no connection, 429, 5xx), InstanceNotFoundError,
        SessionLostError or RegistryError (refused).
        """


def segment(text: str) -> str:
    """Quote one part of a path; `/` too."""
    return quote(text, safe="")


class ConsulClient:
    """`ConsulApi` over a bounded pool of connections. `async with` it; one event loop."""

    def __init__(self, options: ConsulOptions) -> None:
        self._options = options
        self._base = _base_url(options)
        self._basic_auth = options.http_auth or _credentials_in(options.address)
        self._token = options.token
        self._session: aiohttp.ClientSession | None = None

    @property
    def tls_server_name(self) -> str:
        """The name expected in the registry's certificate, if it is not the host's."""
        return self._options.tls_server_name

    def ssl_context(self) -> ssl.SSLContext:
        """What `https` connections check. Raises ConfigError when a file of it is not usable."""
        return _ssl_context(self._options)

    def refusal(self, status: int, data: bytes, retry_after: str = "") -> RegistryError:
        """What an answer other than 2xx means, as an error to raise."""
        if status == 403:
            self._read_token_file()
        text = data[: _LONGEST_TEXT * 4].decode("utf-8", "replace").strip()[:_LONGEST_TEXT]
        return _refusal(status, text, retry_after)

    @property
    def address(self) -> str:
        """The registry's URL without credentials, for messages."""
        return self._base

    @property
    def origin(self) -> str:
        """What is read here, without credentials: the address, and the partition and namespace if they are said."""
        parts = {"partition": self._options.partition, "ns": self._options.namespace}
        query = urlencode({name: value for name, value in parts.items() if value})
        return f"{self._base}?{query}" if query else self._base

    async def __aenter__(self) -> Self:
        self._read_token_file()
        connector = aiohttp.TCPConnector(
            limit=self._options.pool_size,
            ssl=_ssl_context(self._options) if self._base.startswith("https") else True,
            keepalive_timeout=30,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._options.call_seconds),
            # Consul compresses when asked to, which costs both sides more CPU than a local wire saves.
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        """See `ConsulApi.call`."""
        if self._session is None:
            raise RuntimeError("ConsulClient is used outside its `async with`")
        limit = self._options.call_seconds if limit_seconds is None else limit_seconds
        ends = asyncio.get_running_loop().time() + limit
        if deadline is not None:
            ends = min(ends, deadline)
        url = URL(f"{self._base}{path}", encoded=True)
        try:
            async with (
                asyncio.timeout_at(ends),
                self._session.request(
                    method,
                    url.update_query(params) if params else url,
                    data=body,
                    headers=self.headers(),
                    server_hostname=self._options.tls_server_name or None,
                    allow_redirects=False,
                ) as response,
            ):
                data = await response.read()
                return self._judge(response.status, response.headers, data, missing_ok)
        except TimeoutError as error:
            raise RegistryUnavailableError(f"registry {self._base} did not answer {method} {path} in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryUnavailableError(f"registry {self._base} cannot be reached: {words_of(error)}") from error

    def _judge(self, status: int, headers: Mapping[str, str], data: bytes, missing_ok: bool) -> Answer:
        if 200 <= status < 300:
            return Answer(status, data, _index(headers))
        if status == 403:
            self._read_token_file()
        text = data[: _LONGEST_TEXT * 4].decode("utf-8", "replace").strip()[:_LONGEST_TEXT]
        if status == 404 and missing_ok and (not text or "X-Consul-Index" in headers):
            return Answer(status, data, _index(headers))
        raise _refusal(status, text, headers.get("Retry-After", ""))

    def headers(self) -> dict[str, str]:
        """Credentials of every request."""
        headers = {}
        if self._token:
            headers["X-Consul-Token"] = self._token
        if self._options.namespace:
            headers["X-Consul-Namespace"] = self._options.namespace
        if self._options.partition:
            headers["X-Consul-Partition"] = self._options.partition
        if self._basic_auth:
            headers["Authorization"] = "Basic " + b64encode(self._basic_auth.encode()).decode()
        return headers

    def _read_token_file(self) -> None:
        if self._options.token_file:
            try:
                self._token = Path(self._options.token_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                # While a file is being replaced it may be gone for a moment: the token in hand is the better guess.
                if not self._token:
                    raise ConfigError(
                        f"CONSUL_HTTP_TOKEN_FILE={self._options.token_file!r} cannot be read: {error.strerror}"
                    ) from error


def _refusal(status: int, text: str, retry_after: str) -> RegistryError:
    """What an answer other than 2xx means. Consul answers 500 for some things that are the caller's to know."""
    lowered = text.lower()
    if "invalid session" in lowered or ("session id" in lowered and "not found" in lowered):
        return SessionLostError(text)
    unknown_check = "does not have associated ttl" in lowered or "unknown check" in lowered
    if unknown_check or "unknown service" in lowered:
        return InstanceNotFoundError(text)
    said = f"registry answered {status}: {text or 'no text'}"
    if status == 429 or status >= 500:
        if retry_after.isdecimal():
            return ThrottledError(said, min(float(retry_after), 60.0))
        return RegistryUnavailableError(said)
    return RegistryError(said)


def _index(headers: Mapping[str, str]) -> int | None:
    text = headers.get("X-Consul-Index", "")
    return int(text) if text.isdecimal() else None


def words_of(error: BaseException) -> str:
    """Why there is no connection, in the system's own words: the address is in our sentence already."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):  # whose numbers are not the system's
        if isinstance(cause, socket.gaierror) and cause.strerror:
            return cause.strerror.lower()
        if cause.errno:
            return os.strerror(cause.errno).lower()
    return str(cause) or type(cause).__name__


def _base_url(options: ConsulOptions) -> str:
    parts = urlsplit(options.address)
    scheme = "https" if options.use_tls else parts.scheme
    if scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"CONSUL_ADDRESS={mask_credentials(options.address)!r} should be an http:// or https:// URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((scheme, host + port, parts.path.rstrip("/"), "", ""))


def _credentials_in(address: str) -> str:
    """`user:password` of a URL that holds them; else empty."""
    userinfo, is_there, _ = urlsplit(address).netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    return f"{unquote(user)}:{unquote(password)}" if is_there else ""


def _ssl_context(options: ConsulOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None, capath=options.ca_path or None)
        if options.client_cert:
            context.load_cert_chain(options.client_cert, options.client_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS files of CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY are not usable: {error}"
        ) from error
    if not options.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
