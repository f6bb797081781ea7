"""Tokens of the gateway's tests, and what has a gateway check them."""

import asyncio
import time

import jwt

from toska_mesh.gateway.auth import TokenChecker

SECRET = "a secret that is long enough for HS256"


def token(**claims: object) -> str:
    return jwt.encode(
        {"exp": time.time() + 60, "iss": "ToskaMesh.Gateway", "aud": "ToskaMesh.Services"} | claims,  # noqa: TID251
        SECRET,
        "HS256",
    )


def with_tokens(tasks: asyncio.TaskGroup) -> dict[str, object]:
    """For `running_gateway(options=...)`."""
    checker = TokenChecker("ToskaMesh.Gateway", "ToskaMesh.Services", {"": (SECRET, ("HS256",))}, time.time)  # noqa: TID251
    return {"tokens": checker}
