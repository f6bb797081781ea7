"""Service-to-service tokens: who calls, and whether an instance is theirs.

The token is the mesh family's HS256 JWT (`Authorization: Bearer …`), with the claim names of .NET identities. The same
rule guards gRPC and REST. An instance belongs to the identity that registered it; only that one or an Admin may touch
it afterwards, while instances without an owner belong to nobody and may be touched by every caller that is let in.
"""

import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import jwt

from toska_mesh.errors import MeshError

AuthMode = Literal["off", "optional", "required"]

SERVICE_ROLE = "Service"
ADMIN_ROLE = "Admin"
LEEWAY_SECONDS = 30

_ROLE_CLAIMS = ("http://schemas.microsoft.com/ws/2008/06/identity/claims/role", "role")
_MAX_CACHED = 4096


class UnauthenticatedError(MeshError):
    """No token where one is required, or a token that does not hold. The text is for the caller."""


class PermissionDeniedError(MeshError):
    """A valid token that does not let its bearer call at all. The text is for the caller."""


class NotOwnerError(MeshError):
    """The instance belongs to another identity. The text is for the caller."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a valid token speaks for."""

    service_id: str
    is_admin: bool = False


class Gatekeeper:
    """Decides who may call. Tokens that held are remembered until they expire: beats carry the same one for minutes."""

    def __init__(self, mode: AuthMode, secret: str, issuer: str, audience: str, utcnow: Callable[[], datetime]) -> None:
        self._mode = mode
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self._utcnow = utcnow
        self._held: OrderedDict[str, tuple[Identity, float]] = OrderedDict()

    def admit(self, authorization: str | None) -> Identity | None:
        """Who calls, from the Authorization header; None for an anonymous caller that may pass.

        Raises UnauthenticatedError or PermissionDeniedError. A token that does not hold is refused in optional mode
        too: its bearer should learn that it is not who it says.
        """
        if self._mode == "off":
            return None
        if not authorization:
            if self._mode == "optional":
                return None
            raise UnauthenticatedError("a service token is required: send it as `Authorization: Bearer <token>`")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("the Authorization header should be `Bearer <token>`")
        now = self._utcnow().timestamp()
        held = self._held.get(token)
        if held is not None and now < held[1]:
            return held[0]
        claims = self._claims(token)
        identity = _identity(claims)
        self._held[token] = (identity, float(claims["exp"]) + LEEWAY_SECONDS)
        while len(self._held) > _MAX_CACHED:
            self._held.popitem(last=False)
        return identity

    def check_owner(self, identity: Identity | None, owner: str | None, instance_id: str) -> None:
        """Raises NotOwnerError when the instance belongs to another identity."""
        if self._mode == "off" or owner is None:
            return
        if identity is None:
            raise NotOwnerError(f"serviceId {instance_id!r} was registered with a token; this call has none")
        if not identity.is_admin and not hmac.compare_digest(identity.service_id.encode(), owner.encode()):
            raise NotOwnerError(
                f"serviceId {instance_id!r} was registered by another identity than {identity.service_id!r}"
            )

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                # `iat` is a text in tokens of the C# generation, `sub` is absent there; neither decides anything.
                options={"require": ["exp"], "verify_iat": False, "verify_sub": False},
            )
        except jwt.PyJWTError as exc:
            raise UnauthenticatedError(f"the token does not hold: {exc}") from exc


def _identity(claims: Mapping[str, Any]) -> Identity:
    roles = {role for claim in _ROLE_CLAIMS for role in _texts(claims.get(claim))}
    service_id = claims.get("service_id")
    if not isinstance(service_id, str) or not service_id:
        raise PermissionDeniedError("the token carries no `service_id` claim")
    if not roles & {SERVICE_ROLE, ADMIN_ROLE}:
        raise PermissionDeniedError(f"the token's roles do not include {SERVICE_ROLE}")
    return Identity(service_id, ADMIN_ROLE in roles)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
