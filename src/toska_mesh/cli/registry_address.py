"""Which registry a command means, who said so, and whether that can be one.

The daemons wait for a registry whose name is not known yet. Somebody at a terminal has mistyped it, so the commands say
so at once.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from toska_mesh.cli.daemons import REGISTRY, url_of
from toska_mesh.errors import ConfigError
from toska_mesh.model.rules import mask_credentials
from toska_mesh.settings import ConsulSettings, DaemonSettings, load, variables_of

RESOLVE_SECONDS = 2.0
"""A resolver that takes longer is not waited for: what it would have said shows later."""
_ADDRESSES = ("CONSUL_ADDRESS", "CONSUL_HTTP_ADDR")
_EMBEDDED = ("REGISTRY_PORT", "REGISTRY_HOST", "REGISTRY_TOKEN")
_UNKNOWN_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

S = TypeVar("S", bound=ConsulSettings)
Resolve = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Chosen(Generic[S]):
    """Settings that lead to a registry."""

    settings: S
    variable: str
    """Whoever wants another registry changes this one."""
    is_default: bool = False

    @property
    def origin(self) -> str:
        return f"the default, {self.variable} is not set" if self.is_default else f"by {self.variable}"


@dataclass(frozen=True, slots=True)
class Said:
    """An address that somebody gave, and where."""

    url: str
    source: str


def said_address(environ: Mapping[str, str], option: str = "") -> Said | None:
    """What `--consul` or a variable says. Raises ConfigError for what can be no address."""
    said = (("--consul", option), *((name, environ.get(name, "")) for name in _ADDRESSES))
    for source, written in said:
        if written:
            check_address(written, source)
            return Said(written if "://" in written else f"http://{written}", source)
    return None


def choose_registry(model: type[S], environ: Mapping[str, str]) -> Chosen[S]:
    """As the daemons find it; without an address, REGISTRY_PORT and its companions mean the embedded one of `toska up`.

    Raises ConfigError.
    """
    if (said := said_address(environ)) is not None:
        return Chosen(load(model, environ).settings, said.source)
    if any(environ.get(name) for name in _EMBEDDED):
        embedded = load(REGISTRY.settings, environ)
        ours = [name for name in _EMBEDDED if embedded.origins[name] != "default"]  # and not set by Kubernetes
        if ours:
            changed = dict(environ)
            point_at_embedded_registry(changed, embedded.settings)
            return Chosen(load(model, changed).settings, ours[0])
    return Chosen(load(model, environ).settings, _ADDRESSES[0], is_default=True)


def point_at_embedded_registry(environ: dict[str, str], registry: DaemonSettings) -> None:
    """Change `environ` to lead there. What is meant for another (TLS, namespace, its token) would get in the way."""
    common = {known.name for known in variables_of(DaemonSettings)}
    for known in variables_of(ConsulSettings):
        for name in (known.name, *known.also):
            if name not in common:
                environ.pop(name, None)
    environ["CONSUL_ADDRESS"] = url_of(registry, "REGISTRY_HOST", "REGISTRY_PORT")
    if environ.get("REGISTRY_TOKEN"):
        environ["CONSUL_HTTP_TOKEN"] = environ["REGISTRY_TOKEN"]


def check_address(written: str, source: str) -> None:
    """Raises ConfigError for a mere word. Consul's tools write `host:port`, so the scheme may be missing."""
    if "://" not in written and not re.search(r":\d+$", written):
        shown = mask_credentials(f"http://{written}").removeprefix("http://")
        raise ConfigError(f"{source}={shown!r} is no address; it should be a URL such as http://localhost:8500")


async def check_host(url: str, source: str, seconds: float = RESOLVE_SECONDS, resolve: Resolve | None = None) -> None:
    """Raises ConfigError when the resolver says that there is no such host; any other trouble may pass."""
    host = urlsplit(url).hostname or ""
    try:
        async with asyncio.timeout(seconds):
            await (resolve or _resolve)(host)
    except socket.gaierror as exc:
        if exc.errno not in _UNKNOWN_HOST:
            return
    except UnicodeError:  # no name at all: an empty label or one that is too long
        pass
    except (OSError, TimeoutError):
        return
    else:
        return
    raise ConfigError(f"{source}={mask_credentials(url)!r}: no host {host!r} is known here")


async def _resolve(host: str) -> object:
    return await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
