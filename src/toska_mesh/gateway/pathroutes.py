"""Routes beside `/api/<service>/`: by host and path, as services ask for them in `toska-host` and `toska-path`. Pure.

Which one a request takes: a route of its own host before one of a host pattern (the longest first) before one of any
host; with the same host the longest path. Paths are compared byte for byte and end at a slash, so `/shop` is `/shop`
and `/shop/cart`, not `/shopping`. Of two services that ask for the same, the newest registration gets it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toska_mesh.gateway.routepolicy import RoutePolicy, host_name
from toska_mesh.router import Service

_MAX_HOST_BYTES = 255
ANY_HOST = ""


class _Paths:
    """The routes of one host."""

    __slots__ = ("_by_path", "_lengths")

    def __init__(self, by_path: Mapping[bytes, Service]) -> None:
        self._by_path = by_path
        self._lengths = sorted(set(map(len, by_path)), reverse=True)

    def find(self, path: bytes) -> tuple[Service, bytes] | None:
        """The service of the longest path, and what is left of the request's path: empty or with a slash in front."""
        for length in self._lengths:
            left = path[length:]
            if left[:1] in (b"/", b"") and (service := self._by_path.get(path[:length])) is not None:
                return service, left
        return None


class PathRoutes:
    """The routes of one table. Not changed once it is built."""

    __slots__ = ("_any", "_by_host", "_by_suffix", "_closed", "conflicts")

    def __init__(self, services: Iterable[Service], closed_paths: Sequence[str]) -> None:
        """`closed_paths` end with a slash: they and what is below them is no service's."""
        self._closed = tuple(path.encode() for path in closed_paths)
        self.conflicts: dict[str, tuple[str, ...]] = {}
        """By service: what it has to share or gave away, in words."""
        claims: dict[tuple[str, str], list[tuple[Any, str, Service]]] = {}
        for service in services:
            policy: RoutePolicy = service.policy
            for path in policy.paths:
                for host in policy.hosts.patterns if policy.hosts else (ANY_HOST,):
                    claims.setdefault((host, path), []).append((policy.paths_since, service.name, service))
        winners: dict[str, dict[bytes, Service]] = {}
        for (host, path), claimants in claims.items():
            claimants.sort(key=lambda claim: claim[:2], reverse=True)
            winners.setdefault(host, {})[path.encode()] = claimants[0][2]
            if len(claimants) > 1:
                self._note_conflict(f"{host or 'any host'}, {path or '/'}", [claim[2].name for claim in claimants])

        self._any = _Paths(winners.pop(ANY_HOST, {}))
        self._by_host = {host.encode(): _Paths(won) for host, won in winners.items() if not host.startswith("*")}
        self._by_suffix = {host[1:].encode(): _Paths(won) for host, won in winners.items() if host.startswith("*")}

    def find(self, host: bytes, path: bytes) -> tuple[Service, bytes] | None:
        """The service and the rest of the path; None when no route takes the request."""
        if (path + b"/").startswith(self._closed):
            return None
        if self._by_host or self._by_suffix:
            name = host_name(host)
            if 0 < len(name) <= _MAX_HOST_BYTES:
                paths = self._by_host.get(name)
                found = paths.find(path) if paths is not None else None
                dot = name.find(b".") if found is None and self._by_suffix else -1
                while found is None and dot >= 0:
                    paths = self._by_suffix.get(name[dot:])
                    found = paths.find(path) if paths is not None else None
                    dot = name.find(b".", dot + 1)
                if found is not None:
                    return found
        return self._any.find(path)

    def _note_conflict(self, what: str, names: Sequence[str]) -> None:
        winner, *losers = names
        others = ", ".join(repr(loser) for loser in losers)
        told = f"{what}: {others} asked for it too; {winner!r} was registered last and gets the requests"
        for name in names:
            self.conflicts[name] = (*self.conflicts.get(name, ()), told)
