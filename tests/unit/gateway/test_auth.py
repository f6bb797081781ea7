"""Which bearer tokens the gateway lets pass, with which keys, and what it remembers of them."""

import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from toska_mesh.errors import ConfigError
from toska_mesh.gateway.auth import (
    LEEWAY_SECONDS,
    MAX_REMEMBERED,
    SYMMETRIC,
    Keys,
    TokenChecker,
    parse_key_set,
    static_keys,
)
from toska_mesh.gateway.settings import GatewaySettings

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a" * 2  # long enough for HS512 too
OTHER_SECRET = "another secret of thirty-two bytes!"
ISSUER, AUDIENCE = "ToskaMesh.Gateway", "ToskaMesh.Services"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


LIFE_SECONDS = 24 * 3600
"""Of a good token: PyJWT reads the wall clock itself, so it must stay good however slowly the tests go."""

Changes = dict[str, Any]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> int:
    """The moment the test began: what `today` gives from then on, to the tokens and to the checker alike."""
    moment = int(time.time())  # noqa: TID251 - PyJWT reads the wall clock itself
    monkeypatch.setitem(_CLOCK, "now", moment)
    return moment


_CLOCK: dict[str, int] = {}


def today() -> int:
    return _CLOCK["now"]


def checker(keys: Keys | None = None) -> TokenChecker:
    return TokenChecker(ISSUER, AUDIENCE, {"": (SECRET, SYMMETRIC)} if keys is None else keys, today)


def claims(**changes: Any) -> dict[str, Any]:
    full = {"iss": ISSUER, "aud": AUDIENCE, "exp": today() + LIFE_SECONDS} | changes
    return {name: value for name, value in full.items() if value is not None}


def bearer(key: Any = SECRET, algorithm: str = "HS256", kid: str = "", scheme: str = "Bearer", **changes: Any) -> bytes:
    headers = {"kid": kid} if kid else None
    return f"{scheme} {jwt.encode(claims(**changes), key, algorithm, headers=headers)}".encode()


def jwk(key: Any, **fields: str) -> dict[str, Any]:
    to_jwk = {RSA_KEY: RSAAlgorithm, EC_KEY: ECAlgorithm, ED_KEY: OKPAlgorithm}[key].to_jwk
    return json.loads(to_jwk(key.public_key())) | fields


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"scheme": "bearer"}, id="scheme in lower case"),
        pytest.param({"aud": ["Others", AUDIENCE]}, id="one audience of several"),
        pytest.param({"iat": "1700000000"}, id="iat as a text, as the C# generation writes it"),
    ],
)
def test_a_good_token_passes(changes: Changes) -> None:
    assert checker().check(bearer(**changes), 0.0) == ""


def test_other_clocks_may_be_a_little_wrong(now: int) -> None:
    assert checker().check(bearer(exp=now - 1), 0.0) == ""
    assert checker().check(bearer(nbf=now + LEEWAY_SECONDS), 0.0) == ""


def test_what_other_clocks_cannot_explain_is_refused(now: int) -> None:
    assert checker().check(bearer(exp=now - LEEWAY_SECONDS - 1), 0.0) == "invalid token"
    assert checker().check(bearer(nbf=now + LEEWAY_SECONDS + LIFE_SECONDS), 0.0) == "invalid token"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"Basic dXNlcjpwdw==", id="another scheme"),
        pytest.param(b"Bearer ", id="empty"),
        pytest.param(b"Bearer a.b.c", id="no token"),
        pytest.param("Bearer ü".encode(), id="not ASCII"),
        pytest.param(b"Bearer " + b"a" * 20_000, id="endless"),
    ],
)
def test_what_is_no_token_is_refused(authorization: bytes) -> None:
    why = checker().check(authorization, 0.0)
    assert why in ("missing or invalid authorization header", "invalid token")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"key": OTHER_SECRET}, id="another secret"),
        pytest.param({"exp": None}, id="without exp"),
        pytest.param({"iss": "Others"}, id="another issuer"),
        pytest.param({"iss": None}, id="without issuer"),
        pytest.param({"aud": "Others"}, id="another audience"),
        pytest.param({"aud": None}, id="without audience"),
        pytest.param({"algorithm": "HS512"}, id="an algorithm that is not on the list"),
        pytest.param({"key": None, "algorithm": "none"}, id="unsigned"),
    ],
)
def test_any_other_token_is_refused(changes: Changes) -> None:
    assert checker().check(bearer(**changes), 0.0) == "invalid token"


def test_a_public_key_is_no_secret() -> None:
    """RFC 8725 section 2.1: who knows the public key must not be able to sign with it as an HMAC secret."""
    tokens = checker(parse_key_set(key_set(jwk(RSA_KEY))))
    assert tokens.check(bearer(RSA_KEY, "RS256"), 0.0) == ""
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = b".".join(base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256"}, claims()))
    forged = signed + b"." + base64url_encode(hmac.digest(pem, signed, "sha256"))
    assert tokens.check(b"Bearer " + forged, 0.0) == "invalid token"


def test_a_verified_token_is_remembered_until_it_expires() -> None:
    tokens = checker()
    good = bearer()
    assert tokens.check(good, 1000.0) == ""
    tokens.keys = {}  # a second verification would fail
    assert tokens.check(good, 1000.0 + LIFE_SECONDS + LEEWAY_SECONDS - 1) == ""
    assert tokens.check(good, 1000.0 + LIFE_SECONDS + LEEWAY_SECONDS) == "invalid token"


def test_with_other_keys_nothing_is_remembered() -> None:
    tokens = checker()
    good = bearer()
    assert tokens.check(good, 0.0) == ""
    tokens.replace_keys({"": (OTHER_SECRET, SYMMETRIC)})
    assert tokens.check(good, 0.0) == "invalid token"


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY, ED_KEY])
def test_the_same_keys_read_again_are_no_reason_to_forget(key: Any) -> None:
    def read() -> Any:
        return load_pem_public_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    tokens = checker()
    tokens.replace_keys({"": (read(), ("RS256",))})
    tokens._remember(bearer(), claims()["exp"], 0.0)
    tokens.replace_keys({"": (read(), ("RS256",))})
    assert tokens.check(bearer(), 0.0) == ""
    tokens.replace_keys({"": (read(), ("RS512",))})
    assert tokens.check(bearer(), 0.0) == "invalid token"


def test_a_bounded_number_is_remembered() -> None:
    tokens = checker()
    oldest = bearer()
    assert tokens.check(oldest, 0.0) == ""
    for number in range(MAX_REMEMBERED):
        tokens._remember(b"Bearer %d" % number, claims()["exp"], 0.0)
    tokens.keys = {}
    assert tokens.check(oldest, 0.0) == "invalid token"
    assert tokens.check(b"Bearer %d" % (MAX_REMEMBERED - 1), 0.0) == ""


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
def test_keys_of_a_set_are_found_by_their_id(key: Any, algorithm: str) -> None:
    tokens = checker(parse_key_set(key_set(jwk(RSA_KEY, kid="r"), jwk(EC_KEY, kid="e"), jwk(ED_KEY, kid="d"))))
    kid = {"RS256": "r", "ES256": "e", "EdDSA": "d"}[algorithm]
    assert tokens.check(bearer(key, algorithm, kid=kid), 0.0) == ""
    assert tokens.check(bearer(key, algorithm, kid="unknown"), 0.0) == "invalid token"
    assert tokens.knows_key_of(bearer(key, algorithm, kid=kid))
    assert not tokens.knows_key_of(bearer(key, algorithm, kid="unknown"))
    assert tokens.knows_key_of(b"Bearer nonsense")  # no key would make a token of it


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(key_set(), id="no keys"),
        pytest.param(key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), id="only a shared secret"),
        pytest.param(key_set(jwk(RSA_KEY, kid="r", use="enc")), id="only a key for encryption"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"x"', id="a string"),
        pytest.param(b"7", id="a number"),
        pytest.param(b"{}", id="an object without keys"),
        pytest.param(b'{"keys": {}}', id="keys that are no array"),
        pytest.param(b'{"keys": [null, 1, "x", []]}', id="keys that are no objects"),
        pytest.param(b"[" * 100_000, id="nested deeply"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
    ],
)
def test_a_set_without_a_usable_key_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_key_set(body)


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(None, id="null"),
        pytest.param({}, id="an empty object"),
        pytest.param({"kty": "SECRET"}, id="an unknown kind"),
        pytest.param({"kty": ["RSA"], "alg": []}, id="words that are arrays"),
        pytest.param({"kty": "RSA", "n": 1, "e": {}}, id="numbers that are no texts"),
        pytest.param(jwk(RSA_KEY) | {"kid": ["r"]}, id="a key id that is an array"),
    ],
)
def test_an_odd_member_spoils_no_other_key(member: Any) -> None:
    assert list(parse_key_set(key_set(member, jwk(EC_KEY, kid="e")))) == ["e"]


def test_a_public_key_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(EC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    keys = static_keys(GatewaySettings(jwt_public_key_file=str(path)))
    assert checker(keys).check(bearer(EC_KEY, "ES256"), 0.0) == ""
    assert checker(keys).check(bearer(RSA_KEY, "RS256"), 0.0) == "invalid token"


def test_a_file_that_holds_no_key_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("no key")
    with pytest.raises(ConfigError, match="JWT_PUBLIC_KEY_FILE"):
        static_keys(GatewaySettings(jwt_public_key_file=str(path)))
