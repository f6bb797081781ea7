"""Files that change while the gateway runs: certificates, authorities, keys.

Contents are compared, not times: secrets arrive by atomic renames, by symbolic links that are turned to another folder
(Kubernetes), or by programs that write in place, and a restored backup may be older than what it replaces. What is
read while somebody is still writing does not fit together and is refused; the old stays in use until the files fit.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Never, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from toska_mesh.admin import Health, HealthState
from toska_mesh.errors import ConfigError
from toska_mesh.telemetry import event_log

POLL_SECONDS = 1.0

T = TypeVar("T")

log = event_log("gateway.files")


@dataclass(eq=False)
class WatchedFiles(Generic[T]):
    """Files that are used together, as one value of type T. Owned by a `FileWatch`."""

    name: str
    """For the health check, the metrics and the log."""
    paths: Sequence[str]
    load: Callable[[], T]
    """Called in a thread. Raises ConfigError for files that are unusable or do not belong together."""
    use: Callable[[T], Awaitable[None]]
    """Called on the loop with what `load` made."""
    in_use: bytes
    """Fingerprint of the files, taken before what is in use now was loaded from them."""
    expires_at: Callable[[], float | None] = field(default=lambda: None)
    """When what is in use stops being valid, in Unix seconds; None when it does not."""
    refused: str = field(init=False, default="")
    """Why the files as they are now are not in use."""
    seen: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.seen = self.in_use


def fingerprint(paths: Sequence[str]) -> bytes:
    """Of the contents; a file that cannot be read counts as one of its own kind."""
    digest = blake2b(digest_size=16)
    for path in paths:
        try:
            content = Path(path).read_bytes()
            digest.update(b"%d:%b" % (len(content), content))
        except OSError as exc:
            digest.update(f"-{exc.errno}:".encode())
    return digest.digest()


class FileWatch(Collector):
    """Looks at the files every `poll_seconds` and replaces what is in use. One event loop.

    Says in `/health/ready` (Degraded), in metrics and once in the log when files are refused or have expired.
    `wall_clock`: Unix seconds.
    """

    def __init__(
        self,
        groups: Sequence[WatchedFiles[Any]],
        health: Health,
        wall_clock: Callable[[], float] = time.time,  # noqa: TID251 - certificates are dated by the wall clock
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._groups = groups
        self._health = health
        self._wall_clock = wall_clock
        self._poll_seconds = poll_seconds
        self._reloads: Counter[tuple[str, str]] = Counter()
        self._expired: set[str] = set()
        for group in groups:
            self._say_health(group)

    async def run(self) -> Never:
        """Until cancelled."""
        while True:
            for group in self._groups:
                try:
                    await self.look(group)
                except Exception:
                    log.exception("files_not_watched", files=group.name)  # the next look is another chance
            await asyncio.sleep(self._poll_seconds)

    async def look(self, group: WatchedFiles[Any]) -> None:
        """One look at one group: load and use it if its contents have changed."""
        # Before loading: what changes meanwhile differs at the next look.
        now_seen = await asyncio.to_thread(fingerprint, group.paths)
        if now_seen != group.seen:
            if now_seen == group.in_use:
                group.refused = ""
                log.info("files_restored", files=group.name)
            else:
                await self._load(group, now_seen)
            group.seen = now_seen  # only now: what could not be taken into use for want of descriptors is tried again
        self._say_health(group)

    async def _load(self, group: WatchedFiles[Any], now_seen: bytes) -> None:
        try:
            loaded = await asyncio.to_thread(group.load)
        except ConfigError as exc:
            group.refused = str(exc)
            self._reloads[group.name, "refused"] += 1
            log.error("files_refused", files=group.name, reason=str(exc), consequence="the old ones stay in use")
            return
        await group.use(loaded)
        group.in_use, group.refused = now_seen, ""
        self._reloads[group.name, "ok"] += 1
        log.info("files_reloaded", files=group.name, paths=list(group.paths), valid_until=_moment(group))

    def _say_health(self, group: WatchedFiles[Any]) -> None:
        expires_at = group.expires_at()
        has_expired = expires_at is not None and expires_at <= self._wall_clock()
        if has_expired and group.name not in self._expired:
            log.error("certificate_expired", files=group.name, expired_at=_moment(group))
        (self._expired.add if has_expired else self._expired.discard)(group.name)
        if group.refused:
            self._health.set(group.name, HealthState.DEGRADED, f"the old files stay in use: {group.refused}")
        elif has_expired:
            self._health.set(group.name, HealthState.DEGRADED, f"expired at {_moment(group)}")
        else:
            until = f"valid until {_moment(group)}" if expires_at is not None else ""
            self._health.set(group.name, HealthState.HEALTHY, until)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What `prometheus_client` calls."""
        expiry = GaugeMetricFamily(
            "toska_gateway_certificate_expiry_timestamp_seconds",
            "When a certificate in use expires, in Unix seconds.",
            labels=["files"],
        )
        refused = GaugeMetricFamily(
            "toska_gateway_files_refused", "1 while changed files are unusable and the old stay.", labels=["files"]
        )
        reloads = CounterMetricFamily(
            "toska_gateway_file_reloads", "Changes of watched files, by result.", labels=["files", "result"]
        )
        for group in self._groups:
            expires_at = group.expires_at()
            if expires_at is not None:
                expiry.add_metric([group.name], expires_at)
            refused.add_metric([group.name], float(bool(group.refused)))
            for result in ("ok", "refused"):
                reloads.add_metric([group.name, result], self._reloads[group.name, result])
        yield from (expiry, refused, reloads)


def _moment(group: WatchedFiles[Any]) -> str | None:
    expires_at = group.expires_at()
    return None if expires_at is None else datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")
