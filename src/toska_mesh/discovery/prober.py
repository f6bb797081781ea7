"""One health probe on demand, for `POST health/check/{id}`.

The outcome is told to the asker and to nobody else: one probe must neither take an instance out of the mesh (thresholds
are the health monitor's) nor overrule what the instance says of itself.
"""

import asyncio

import aiohttp
from yarl import URL

from toska_mesh.model import HealthStatus, Instance
from toska_mesh.model import metadata as keys

PROBE_SECONDS = 5.0


class Prober:
    """Makes a connection of its own for every probe; they are rare and go anywhere."""

    async def probe(self, instance: Instance) -> tuple[HealthStatus, str]:
        """GET the instance's health path without following redirects. Unknown when it names none."""
        path = instance.metadata.get(keys.HEALTH_CHECK_ENDPOINT, "")
        if not path.startswith("/"):
            return HealthStatus.UNKNOWN, f"no {keys.HEALTH_CHECK_ENDPOINT} in the metadata"
        scheme = instance.metadata.get(keys.SCHEME, "").lower() or "http"
        if scheme not in ("http", "https"):
            return HealthStatus.UNKNOWN, f"scheme {scheme} cannot be probed"
        url = URL(f"{scheme}://{instance.endpoint.authority}").join(URL(path, encoded=True))
        try:
            async with (
                asyncio.timeout(PROBE_SECONDS),
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                is_fine = 200 <= response.status < 300
                return HealthStatus.HEALTHY if is_fine else HealthStatus.UNHEALTHY, f"HTTP {response.status}"
        except TimeoutError:
            return HealthStatus.UNHEALTHY, f"no answer within {PROBE_SECONDS:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return HealthStatus.UNHEALTHY, f"{type(exc).__name__}: {exc}"
