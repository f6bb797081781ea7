"""Which store keeps a service's state, as one valid value, and the environment variables that fill it.

Code overrides the environment, the environment overrides defaults. The variables are ours (`MESH_KV_*`) and those of
the .NET runtime (`Mesh__KeyValue__*`).
"""

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.environment import Reading, Variable
from toska_mesh.sdk.kv.redis_address import parse

PROVIDERS: Final[Mapping[str, str]] = {"sqlite": "SQLite", "redis": "Redis", "toskastore": "ToskaStore"}
"""Lower case to the name as we write it. Case does not matter, as in .NET."""

OWN_PREFIX: Final = "MESH_KV_"
_DOTNET_PREFIX: Final = "mesh__keyvalue__"
_SERVICE_LINK: Final = re.compile(r"MESH_KV_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes puts into pods beside a Service called `mesh-kv`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueOptions:
    """Where state is kept. Raises ConfigError naming the option that is wrong."""

    provider: str = "SQLite"
    key_prefix: str = ""
    """Before every key, with a colon between; empty: the service's name. Services that share state share a prefix."""
    timeout_seconds: float = 5.0
    """Longest time for one call, retries and all."""
    sqlite_path: str = ""
    """Empty: one file per user."""
    redis_connection_string: str = field(default="localhost:6379", repr=False)
    redis_database: int | None = None
    """Counts when the connection string names none."""
    toskastore_base_url: str = "http://localhost:4000"
    toskastore_auth_token: str = field(default="", repr=False)
    toskastore_enable_key_index: bool = False
    toskastore_key_index_key: str = "__keys"

    def __post_init__(self) -> None:
        known = PROVIDERS.get(self.provider.lower())
        if known is None:
            raise ConfigError(f"provider={self.provider!r} should be one of {', '.join(PROVIDERS.values())}")
        object.__setattr__(self, "provider", known)
        if not (math.isfinite(self.timeout_seconds) and self.timeout_seconds > 0):
            raise ConfigError(f"timeout_seconds={self.timeout_seconds!r} should be a number of seconds above 0")


def key_value_options(environ: Mapping[str, str] | None = None, **overrides: Any) -> KeyValueOptions:
    """Raises ConfigError listing all that is wrong in the environment, one per line."""
    environ = os.environ if environ is None else environ
    known = {field.name for field in fields(KeyValueOptions)}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"{name} is no option" + (f"; did you mean {near[0]}?" if near else ""))
    problems = list(_unknown(environ))
    values: dict[str, Any] = {}
    provider = str(overrides.get("provider", "")).lower()
    for variable in VARIABLES:
        names = variable.also
        if variable.option == "key_prefix":
            # .NET has one per provider; that of another provider is not ours. The provider is read first.
            chosen = provider or str(values.get("provider", "SQLite")).lower()
            names = tuple(name for name in names if name.lower() == f"{_DOTNET_PREFIX}{chosen}__keyprefix")
        name, text = _first_set((variable.name, *names), environ)
        try:
            if text:
                values[variable.option] = variable.parse(name, text)
        except ConfigError as exc:
            problems.append(str(exc))
    if problems:
        raise ConfigError("\n".join(problems))
    return KeyValueOptions(**{**values, **overrides})


def _first_set(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str]:
    """Compose files write `${X:-}` for "not set": empty is the default. Case counts in our names, not in .NET's."""
    lowered = {name.lower(): name for name in environ if "__" in name}
    for wanted in names:
        name = lowered.get(wanted.lower(), "") if "__" in wanted else wanted
        if text := environ.get(name, "").strip():
            return name, text
    return "", ""


def _unknown(environ: Mapping[str, str]) -> Iterator[str]:
    names = {name for variable in VARIABLES for name in (variable.name, *variable.also)}
    by_lower = {name.lower(): name for name in names}
    for name in sorted(environ):
        is_known = name in names if name.startswith(OWN_PREFIX) else name.lower() in by_lower
        if name.startswith(OWN_PREFIX) or name.lower().startswith(_DOTNET_PREFIX):
            if is_known or _SERVICE_LINK.fullmatch(name):
                continue
            near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
            hint = f"did you mean {by_lower[near[0]]}?" if near else "docs/key-value.md lists the ones there are"
            yield f"{name} is not a setting; {hint}"


def _provider(text: str) -> str:
    if text.lower() not in PROVIDERS:
        raise ValueError(f"it should be one of {', '.join(PROVIDERS.values())}")
    return PROVIDERS[text.lower()]


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or float(text) <= 0:
        raise ValueError("it should be a number of seconds above 0")
    return float(text)


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("it should be the number of a database, as 0")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("it should be `true` or `false`")


def _redis(text: str) -> str:
    try:
        parse(text, "the connection string")
    except ConfigError as exc:
        raise ValueError(str(exc)) from exc
    return text


_TEXT: Final = Reading("text", str)

VARIABLES: Final = (
    Variable(
        "provider",
        "MESH_KV_PROVIDER",
        "Where state is kept.",
        Reading("`SQLite`, `Redis` or `ToskaStore`", _provider),
        ("Mesh__KeyValue__Provider",),
        default="SQLite",
    ),
    Variable(
        "key_prefix",
        "MESH_KV_KEY_PREFIX",
        "What stands before every key, a colon between; empty = the service's name.",
        _TEXT,
        ("Mesh__KeyValue__Redis__KeyPrefix", "Mesh__KeyValue__ToskaStore__KeyPrefix"),
    ),
    Variable(
        "timeout_seconds",
        "MESH_KV_TIMEOUT_SECONDS",
        "Longest time for one call, retries and all.",
        Reading("seconds", _seconds),
        default="5",
    ),
    Variable(
        "sqlite_path",
        "MESH_KV_SQLITE_PATH",
        "SQLite's file; empty = `$XDG_STATE_HOME/toska/kv/kv.sqlite3`, else below `~/.local/state`.",
        Reading("a path", str),
    ),
    Variable(
        "redis_connection_string",
        "MESH_KV_REDIS_CONNECTION_STRING",
        "Redis, as StackExchange.Redis writes it (`host:port,password=…`) or as a `redis://` URL.",
        Reading("a connection string", _redis),
        ("Mesh__KeyValue__Redis__ConnectionString",),
        holds_credentials=True,
        default="localhost:6379",
    ),
    Variable(
        "redis_database",
        "MESH_KV_REDIS_DATABASE",
        "Number of the database, when the connection string names none.",
        Reading("a whole number", _database),
        ("Mesh__KeyValue__Redis__Database",),
    ),
    Variable(
        "toskastore_base_url",
        "MESH_KV_TOSKASTORE_BASE_URL",
        "ToskaStore's address; a path in it is kept.",
        Reading("an http:// or https:// URL", str),
        ("Mesh__KeyValue__ToskaStore__BaseUrl",),
        default="http://localhost:4000",
    ),
    Variable(
        "toskastore_auth_token",
        "MESH_KV_TOSKASTORE_AUTH_TOKEN",
        "Sent to ToskaStore as bearer token.",
        _TEXT,
        ("Mesh__KeyValue__ToskaStore__AuthToken",),
        is_secret=True,
    ),
    Variable(
        "toskastore_enable_key_index",
        "MESH_KV_TOSKASTORE_ENABLE_KEY_INDEX",
        "Keep the list of keys that the .NET runtime needs for its List; it costs two requests per write.",
        Reading("`true` or `false`", _boolean),
        ("Mesh__KeyValue__ToskaStore__EnableKeyIndex",),
        default="false",
    ),
    Variable(
        "toskastore_key_index_key",
        "MESH_KV_TOSKASTORE_KEY_INDEX_KEY",
        "Key of that list, below the prefix.",
        _TEXT,
        ("Mesh__KeyValue__ToskaStore__KeyIndexKey",),
        default="__keys",
    ),
)
"""Also the rows of the reference in `docs/key-value.md`."""


def sqlite_path(options: KeyValueOptions) -> Path | None:
    """None: not said."""
    return Path(options.sqlite_path).expanduser() if options.sqlite_path else None
