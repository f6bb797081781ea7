"""Bearer tokens (RFC 6750, RFC 7519): who may pass.

The algorithms are a fixed list by the kind of key, so a token cannot choose how it is checked (RFC 8725 section 3.1);
`exp` is required. A verified token is remembered until it expires, in bounded number, so that the
usual request costs one look-up.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from toska_mesh.errors import ConfigError
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.telemetry import event_log

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC = ("ES256", "ES384", "ES512")
_EDWARDS = ("EdDSA",)
ASYMMETRIC = (*_RSA, *_EC, *_EDWARDS)
_BY_KEY_TYPE = {"RSA": _RSA, "EC": _EC, "OKP": _EDWARDS}
"""A key is used with the algorithms of its own kind alone (RFC 7518 section 6.1, RFC 8037)."""
SYMMETRIC = ("HS256",)
LEEWAY_SECONDS = 30
MAX_TOKEN_BYTES = 16 * 1024
MAX_REMEMBERED = 10_000
MAX_REMEMBERED_BYTES = 8 * 1024
"""A longer header is checked anew every time: padding must not become memory."""
_NOT_A_TOKEN = (jwt.PyJWTError, UnicodeDecodeError, ValueError, TypeError, OverflowError, RecursionError)
"""What a hostile token can raise: odd numbers and deeply nested JSON included."""

KEYS_MAX_AGE_SECONDS = 300.0
KEYS_MIN_AGE_SECONDS = 10.0
"""Between two fetches of the key set: a client can send any number of tokens with unknown key ids."""

_KEYS_TIMEOUT = aiohttp.ClientTimeout(total=5)
_MAX_KEY_SET_BYTES = 1024 * 1024

log = event_log("gateway.auth")

Keys = dict[str, tuple[Any, tuple[str, ...]]]
"""By key id (empty: the only key): the key and the algorithms that it may be used with."""


class TokenChecker:
    """Checks `Authorization` headers. `wall_clock` gives Unix seconds: tokens are dated."""

    def __init__(self, issuer: str, audience: str, keys: Keys, wall_clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._audience = audience
        self.keys = keys
        self._wall_clock = wall_clock
        self._verified: dict[bytes, float] = {}  # header value -> monotonic moment of its expiry

    def check(self, authorization: bytes, now: float) -> str:
        """Empty when the token is good, else why not, in words for the client. `now`: seconds, monotonic."""
        expires = self._verified.get(authorization)
        if expires is not None:
            if now < expires:
                return ""
            del self._verified[authorization]
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token or len(token) > MAX_TOKEN_BYTES:
            return "missing or invalid authorization header"
        try:
            claims = self._verify(token.decode("ascii"))
            expires_at = float(claims["exp"])
        except _NOT_A_TOKEN:
            # The reason would help only somebody who is guessing; it is in the log at debug level.
            return "invalid token"
        if len(authorization) <= MAX_REMEMBERED_BYTES:
            self._remember(authorization, expires_at, now)
        return ""

    def knows_key_of(self, authorization: bytes) -> bool:
        """Whether the token's key id is known; what is no token at all needs no key."""
        token = authorization.partition(b" ")[2].strip()
        try:
            key_id = jwt.get_unverified_header(token.decode("ascii")).get("kid", "")
        except _NOT_A_TOKEN:
            return True
        return bool(self.keys) and (key_id in self.keys or "" in self.keys)

    def replace_keys(self, keys: Keys) -> None:
        """Use other keys from now on; tokens checked with the old ones are forgotten, unless these are the same."""
        if keys == self.keys:
            return  # fetched anew every few minutes: checking every token again would be a burst of work for nothing
        self.keys = keys
        self._verified.clear()

    def _verify(self, token: str) -> dict[str, Any]:
        key_id = jwt.get_unverified_header(token).get("kid", "")
        found = self.keys.get(key_id) or self.keys.get("")
        if found is None:
            raise jwt.InvalidKeyError("unknown key id")
        key, algorithms = found
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(algorithms),
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY_SECONDS,
            # `iat` is a string in tokens of the mesh family; it decides nothing here.
            options={"require": ["exp"], "verify_iat": False},
        )
        return claims

    def _remember(self, authorization: bytes, exp: float, now: float) -> None:
        if len(self._verified) >= MAX_REMEMBERED:
            # The oldest goes: dictionaries keep the order of insertion.
            del self._verified[next(iter(self._verified))]
        self._verified[authorization] = now + exp + LEEWAY_SECONDS - self._wall_clock()


def static_keys(settings: GatewaySettings) -> Keys:
    """Keys that the settings themselves hold; empty when they come from a URL. Raises ConfigError for a bad file."""
    secret = settings.jwt_secret.get_secret_value()
    if secret:
        return {"": (secret, SYMMETRIC)}
    if settings.jwt_public_key_file:
        try:
            key = load_pem_public_key(Path(settings.jwt_public_key_file).read_bytes())
            return {"": (key, _algorithms_of(key))}
        except (OSError, ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigError(
                f"JWT_PUBLIC_KEY_FILE={settings.jwt_public_key_file!r} is no PEM public key: {exc}"
            ) from exc
    return {}


def _algorithms_of(key: Any) -> tuple[str, ...]:
    """Raises ValueError for a kind of key that signs no tokens."""
    if isinstance(key, RSAPublicKey):
        return _RSA
    if isinstance(key, EllipticCurvePublicKey):
        return _EC
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return _EDWARDS
    raise ValueError(f"{type(key).__name__} is no RSA, EC or EdDSA key")


class KeySetFetcher:
    """Keeps a checker's keys equal to a JSON Web Key Set (RFC 7517) behind a URL."""

    def __init__(self, url: str, checker: TokenChecker, clock: Callable[[], float]) -> None:
        self._url = url
        self._checker = checker
        self._clock = clock
        self._fetched_at = float("-inf")
        self._was_good = False
        """Whether the last fetch brought keys."""
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled: fetch now and then. Failing leaves the keys that are there."""
        while True:
            is_good = await self.fetch()
            await asyncio.sleep(KEYS_MAX_AGE_SECONDS if is_good else KEYS_MIN_AGE_SECONDS)

    async def fetch(self) -> bool:
        """Fetch the set, unless that was tried a moment ago; concurrent callers share it. Whether the last worked."""
        async with self._lock:
            if self._clock() - self._fetched_at < KEYS_MIN_AGE_SECONDS:
                return self._was_good
            self._fetched_at = self._clock()
            self._was_good = False
            try:
                async with aiohttp.ClientSession(timeout=_KEYS_TIMEOUT) as session, session.get(self._url) as answer:
                    answer.raise_for_status()
                    body = b""
                    while len(body) <= _MAX_KEY_SET_BYTES and (part := await answer.content.readany()):
                        body += part
                keys = parse_key_set(body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, jwt.PyJWTError) as exc:
                log.warning("jwks_fetch_failed", url=self._url, error=f"{type(exc).__name__}: {exc}")
                return False
            if set(keys) != set(self._checker.keys):
                log.info("jwks_changed", url=self._url, keys=sorted(keys))
            self._checker.replace_keys(keys)
            self._was_good = True
            return True


def parse_key_set(body: bytes) -> Keys:
    """The signature keys of a JSON Web Key Set. Raises ValueError when there is none."""
    try:
        said = json.loads(body)
    except RecursionError:
        raise ValueError("the key set is nested too deeply") from None
    if not isinstance(said, dict) or not isinstance(said.get("keys"), list):
        raise ValueError("a key set is a JSON object whose `keys` is an array")
    keys: Keys = {}
    for member in said["keys"]:
        try:
            key = jwt.PyJWK(member)
            kid = key.key_id or ""
            fitting = _BY_KEY_TYPE.get(key.key_type or "", ())
            if key.public_key_use in (None, "sig") and fitting:
                keys[kid] = (key.key, (key.algorithm_name,) if key.algorithm_name in fitting else fitting)
        except (jwt.PyJWTError, AttributeError, TypeError):
            continue  # of a kind that PyJWT does not know, or no key at all: it spoils no other (RFC 7517 section 5)
    if not keys:
        raise ValueError("the key set holds no usable signature key")
    return keys
