"""The service's own token: who it says it is to discovery and to other services.

HS256 with the claims that every validator of the mesh family asks for. One token serves many calls; it is made anew
well before its end, and also when the wall clock was set back to before its beginning.
"""

import importlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from toska_mesh.sdk.options import SERVICE_ROLE, ConnectOptions

MARGIN_SECONDS = 30
"""How long before its end a token is no longer sent: clocks differ, and a call takes time."""

_NAME_ID = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier"
_NAME = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name"
_ROLE = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"


def _utcnow() -> datetime:
    return datetime.now(UTC)


class ServiceToken:
    """Makes the token when it is needed. Without a secret there is none, and nothing is sent."""

    def __init__(
        self,
        options: ConnectOptions,
        service: str,
        utcnow: Callable[[], datetime] = _utcnow,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        """`service` is whom it speaks for, unless the options name an identity."""
        self._options = options
        self._identity = options.identity or service
        self._utcnow = utcnow
        self._new_id = new_id
        # Its weight (PyJWT and cryptography) is for those who have a secret.
        self._encode: Callable[..., str] | None = importlib.import_module("jwt").encode if options.auth_secret else None
        self._token = ""
        self._made_at = 0
        self._stale_at = 0

    def current(self) -> str:
        """Empty when no secret is set."""
        if self._encode is None:
            return ""
        now = int(self._utcnow().timestamp())
        if not self._made_at <= now < self._stale_at:
            self._token = self._make(self._encode, now)
        return self._token

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """As metadata of a gRPC call."""
        token = self.current()
        return (("authorization", f"Bearer {token}"),) if token else ()

    def _make(self, encode: Callable[..., str], now: int) -> str:
        options = self._options
        seconds = options.token_minutes * 60
        self._made_at, self._stale_at = now, now + seconds - min(MARGIN_SECONDS, seconds // 4)
        roles = list(dict.fromkeys((*options.roles, SERVICE_ROLE)))
        # .NET writes one claim per role: a text if there is one, a list of several.
        role = roles[0] if len(roles) == 1 else roles
        return encode(
            {
                _NAME_ID: self._identity,
                _NAME: self._identity,
                _ROLE: role,
                "role": role,
                "service_id": self._identity,
                "sub": self._identity,
                "jti": str(self._new_id()),
                "iss": options.auth_issuer,
                "aud": options.auth_audience,
                "iat": now,
                "exp": now + seconds,
            },
            options.auth_secret,
            algorithm="HS256",
        )
