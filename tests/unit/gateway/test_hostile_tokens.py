"""Tokens made to break the check, or to cost memory: each is refused like any other bad token."""

import base64
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from toska_mesh.gateway.auth import ASYMMETRIC, MAX_REMEMBERED_BYTES, SYMMETRIC, TokenChecker, static_keys
from toska_mesh.gateway.settings import GatewaySettings

SECRET = "0123456789abcdef0123456789abcdef"
CLAIMS = {"iss": "i", "aud": "a"}


def today() -> float:
    return time.time()  # noqa: TID251 - PyJWT reads the wall clock itself


def checker() -> TokenChecker:
    return TokenChecker("i", "a", {"": (SECRET, SYMMETRIC)}, today)


def part(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def signed(claims: str) -> bytes:
    """With a good signature over whatever this is."""
    api = jwt.PyJWS()
    return b"Bearer " + api.encode(claims.encode(), SECRET, "HS256").encode()


@pytest.mark.parametrize(
    "authorization",
    [
        b"Bearer " + (part("[" * 5000) + "." + part("{}") + ".x").encode(),
        b"Bearer " + (part('{"alg":"HS256","kid":' + "[" * 5000) + "..").encode(),
        b"Bearer " + (part('{"alg":"HS256","kid":[]}') + "." + part("{}") + ".x").encode(),
        b"Bearer " + (part('{"alg":["HS256"]}') + "." + part("{}") + ".x").encode(),
        b"Bearer " + (part('{"alg":"HS256","b64":false,"crit":["b64"]}') + "..x").encode(),
        b"Bearer ....",
        b"Bearer \xff\xfe",
        b"Bearer " + b"a" * 70_000,
        signed('{"iss":"i","aud":"a","exp":1e400}'),
        signed('{"iss":"i","aud":"a","exp":"never"}'),
        signed('{"iss":"i","aud":"a","exp":[9999999999]}'),
        signed('{"iss":"i","aud":{"a":1},"exp":9999999999}'),
        signed('{"iss":["i"],"aud":"b","exp":9999999999}'),
        signed('["exp"]'),
        signed("[" * 5000),
        signed("not json"),
    ],
)
def test_refused(authorization: bytes) -> None:
    tokens = checker()
    assert tokens.check(authorization, 0.0)
    tokens.knows_key_of(authorization)


def test_padding_is_not_remembered() -> None:
    tokens = checker()
    token = jwt.encode(CLAIMS | {"exp": today() + 60}, SECRET, "HS256").encode()
    for spaces in range(MAX_REMEMBERED_BYTES, MAX_REMEMBERED_BYTES + 50):
        assert tokens.check(b"Bearer" + b" " * spaces + token, 0.0) == ""
    assert sum(map(len, tokens._verified)) == 0
    assert tokens.check(b"Bearer " + token, 0.0) == ""
    assert len(tokens._verified) == 1


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed"])
def test_a_key_is_used_with_the_algorithms_of_its_kind_alone(kind: str, tmp_path: object) -> None:
    keys = {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    path = f"{tmp_path}/key.pem"
    with open(path, "wb") as file:
        file.write(keys[kind].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    found = static_keys(GatewaySettings(jwt_public_key_file=path))
    (_, algorithms) = found[""]
    assert set(algorithms) < set(ASYMMETRIC)
    tokens = TokenChecker("i", "a", found, today)
    for name, algorithm in (("rsa", "RS256"), ("rsa", "PS256"), ("ec", "ES256"), ("ed", "EdDSA")):
        token = jwt.encode(CLAIMS | {"exp": today() + 60}, keys[name], algorithm).encode()
        assert (tokens.check(b"Bearer " + token, 0.0) == "") is (name == kind), algorithm
