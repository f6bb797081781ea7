"""Connection strings of StackExchange.Redis and redis:// URLs."""

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.kv.redis_address import RedisAddress, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", RedisAddress()),
        ("localhost:6380", RedisAddress(port=6380)),
        ("redis.local, ssl = True", RedisAddress("redis.local", 6380, use_tls=True)),
        ("redis.local:7000,ssl=true", RedisAddress("redis.local", 7000, use_tls=True)),
        ("[::1]:7000", RedisAddress("::1", 7000)),
        ("::1", RedisAddress("::1", 6379)),
        (
            "r:1,password=a=b==,user=me,DefaultDatabase=4,name=todo,abortConnect=false,connectTimeout=5000",
            RedisAddress("r", 1, 4, "me", "a=b==", False, "todo"),
        ),
        ("password=x,r:1", RedisAddress("r", 1, password="x")),
        ("r:1,defaultDatabase=-1", RedisAddress("r", 1)),
        ("redis://r", RedisAddress("r")),
        ("rediss://me:p%40ss@r:7000/5", RedisAddress("r", 7000, 5, "me", "p@ss", True)),
        ("redis://:pw@[::1]:7000?db=2", RedisAddress("::1", 7000, 2, password="pw")),
    ],
)
def test_an_address_is_read(text: str, address: RedisAddress) -> None:
    assert parse(text, "X") == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no server"),
        ("password=x", "names no server"),
        ("a:1,b:2,password=x", "names 2 servers; it should name one"),
        ("a:1,serviceName=mymaster", "Sentinel is not supported"),
        ("a:1,sslHost=b", "not supported"),
        ("a:1,passwort=x", "the option 'passwort'"),
        ("a:x", "'a:x'; it should be host:port"),
        ("a:0", "host:port"),
        (":1", "host:port"),
        ("a:1,ssl=maybe", "'maybe'; it should be true or false"),
        ("a:1,defaultDatabase=x", "number of a database"),
        ("http://a", "http:// URL"),
        ("redis://", "redis:// URL"),
        ("redis://a:99999", "no URL"),
        ("redis://a/x", "number of a database"),
        ("redis://a,b/0", "several servers"),
        ("redis://a?timeout=1", "parameters that are not read"),
    ],
)
def test_what_is_no_address_says_what_would_be(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"X.*{said}"):
        parse(text, "X")


@pytest.mark.parametrize("text", ["a:1,password=sec,ret", "redis://u:secret@a,b/0", "a:x,password=secret"])
def test_a_password_is_never_shown(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "X")
    assert "sec" not in str(raised.value)
    assert "secret" not in repr(parse("a:1,password=secret", "X"))
    assert "secret" not in str(parse("a:1,password=secret", "X"))
