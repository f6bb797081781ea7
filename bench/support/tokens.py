"""Tokens for the benchmarks, and the key that they are signed with, in the forms that each proxy takes."""

import base64
import json
from datetime import UTC, datetime, timedelta
from functools import cache

import jwt

SECRET = "the key of the benchmarks, which guards nothing at all"
ISSUER = "ToskaMesh.Gateway"
AUDIENCE = "ToskaMesh.Services"
CLIENTS = 100


@cache
def authorizations(count: int = CLIENTS) -> tuple[str, ...]:
    """Values of the header, one per client; valid for a day."""
    now = datetime.now(UTC)
    return tuple(
        "Bearer "
        + jwt.encode(
            {
                "sub": f"client-{number}",
                "jti": f"{number:032x}",
                "iss": ISSUER,
                "aud": AUDIENCE,
                "iat": now,
                "exp": now + timedelta(days=1),
                "role": ["reader", "writer"],
            },
            SECRET,
            algorithm="HS256",
        )
        for number in range(count)
    )


def key_set() -> str:
    """The secret as a JSON Web Key Set (RFC 7517, RFC 7518 section 6.4)."""
    encoded = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    return json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "k": encoded}]})
