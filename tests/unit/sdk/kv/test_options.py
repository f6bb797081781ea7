"""Which store the environment chooses."""

from typing import Any

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.kv.options import VARIABLES, KeyValueOptions, key_value_options


def test_nothing_set_is_sqlite() -> None:
    assert key_value_options({}) == KeyValueOptions(provider="SQLite")
    assert key_value_options({"MESH_KV_PROVIDER": "", "PATH": "/bin"}) == KeyValueOptions()


def test_the_defaults_of_the_reference_are_those_of_the_options() -> None:
    options = KeyValueOptions()
    for variable in VARIABLES:
        value = getattr(options, variable.option)
        shown = {None: "", False: "false", 5.0: "5"}.get(value, value)
        assert variable.default == shown, variable.name


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        pytest.param(
            {
                "Mesh__KeyValue__Provider": "redis",
                "Mesh__KeyValue__Redis__ConnectionString": "r:1,password=x",
                "Mesh__KeyValue__Redis__KeyPrefix": "shared",
                "Mesh__KeyValue__Redis__Database": "3",
                "Mesh__KeyValue__ToskaStore__KeyPrefix": "other",
            },
            {
                "provider": "Redis",
                "redis_connection_string": "r:1,password=x",
                "key_prefix": "shared",
                "redis_database": 3,
            },
            id="dotnet redis",
        ),
        pytest.param(
            {
                "MESH__KEYVALUE__PROVIDER": "TOSKASTORE",
                "mesh__keyvalue__toskastore__baseurl": "http://s/base",
                "Mesh__KeyValue__ToskaStore__AuthToken": "t",
                "Mesh__KeyValue__ToskaStore__KeyPrefix": "p",
                "Mesh__KeyValue__ToskaStore__EnableKeyIndex": "True",
                "Mesh__KeyValue__ToskaStore__KeyIndexKey": "_k",
            },
            {
                "provider": "ToskaStore",
                "toskastore_base_url": "http://s/base",
                "toskastore_auth_token": "t",
                "key_prefix": "p",
                "toskastore_enable_key_index": True,
                "toskastore_key_index_key": "_k",
            },
            id="dotnet toska store, any case",
        ),
        pytest.param(
            {"MESH_KV_SQLITE_PATH": "/x", "MESH_KV_TIMEOUT_SECONDS": "0.5", "MESH_KV_KEY_PREFIX": "p"},
            {"sqlite_path": "/x", "timeout_seconds": 0.5, "key_prefix": "p"},
            id="ours",
        ),
        pytest.param(
            {"MESH_KV_PROVIDER": "redis", "Mesh__KeyValue__Provider": "ToskaStore"},
            {"provider": "Redis"},
            id="ours before dotnet's",
        ),
        pytest.param(
            {"MESH_KV_PORT": "tcp://10.0.0.1:80", "MESH_KV_SERVICE_HOST": "10.0.0.1", "MESH_KV_PORT_80_TCP": "x"},
            {},
            id="service links",
        ),
    ],
)
def test_variables_fill_the_options(environ: dict[str, str], wanted: dict[str, Any]) -> None:
    assert key_value_options(environ) == KeyValueOptions(**wanted)


def test_code_comes_before_the_environment() -> None:
    environ = {"MESH_KV_PROVIDER": "Redis", "Mesh__KeyValue__ToskaStore__KeyPrefix": "p"}
    options = key_value_options(environ, provider="toskastore", timeout_seconds=1)
    assert (options.provider, options.key_prefix, options.timeout_seconds) == ("ToskaStore", "p", 1)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MESH_KV_PROVIDER": "Mongo"}, "MESH_KV_PROVIDER='Mongo' is wrong: it should be one of SQLite, Redis"),
        ({"Mesh__KeyValue__Provider": "Mongo"}, "Mesh__KeyValue__Provider='Mongo'"),
        ({"MESH_KV_TIMEOUT_SECONDS": "0"}, "MESH_KV_TIMEOUT_SECONDS='0' .* above 0"),
        ({"MESH_KV_REDIS_DATABASE": "-1"}, "number of a database"),
        ({"MESH_KV_TOSKASTORE_ENABLE_KEY_INDEX": "maybe"}, "`true` or `false`"),
        ({"MESH_KV_PROVIDR": "Redis"}, "MESH_KV_PROVIDR is not a setting; did you mean MESH_KV_PROVIDER"),
        ({"Mesh__KeyValue__Redis__ConnectionStrin": "x"}, "did you mean Mesh__KeyValue__Redis__ConnectionString"),
    ],
)
def test_a_wrong_variable_is_named_with_what_would_be_right(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        key_value_options(environ)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        key_value_options({"MESH_KV_PROVIDER": "Mongo", "MESH_KV_X": "1", "MESH_KV_TIMEOUT_SECONDS": "soon"})
    assert len(str(raised.value).splitlines()) == 3


def test_a_wrong_connection_string_hides_its_password() -> None:
    with pytest.raises(ConfigError, match=r"MESH_KV_REDIS_CONNECTION_STRING=\(hidden\).* names 2 servers") as raised:
        key_value_options({"MESH_KV_REDIS_CONNECTION_STRING": "a,b,password=secret"})
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(KeyValueOptions(redis_connection_string="a,password=secret"))


def test_a_wrong_option_in_code_is_named() -> None:
    with pytest.raises(ConfigError, match="provider='Mongo'"):
        key_value_options({}, provider="Mongo")
    with pytest.raises(TypeError, match="did you mean provider"):
        key_value_options({}, providr="Redis")
