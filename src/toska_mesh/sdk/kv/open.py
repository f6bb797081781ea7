"""`open_store`: the one way to a store, the same line whatever the store is.

    async with open_store("todo") as store:
        await store.set("42", todo)

A server that is down is no reason not to start: the first call says so. A setting that is wrong is one.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Never, TypedDict, Unpack

from toska_mesh.sdk.extras import load
from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.backend import Backend
from toska_mesh.sdk.kv.options import KeyValueOptions, key_value_options, sqlite_path
from toska_mesh.sdk.kv.redis_address import parse
from toska_mesh.sdk.kv.store import JsonStore, whole_prefix

log = logging.getLogger("toska_mesh.sdk.kv")


class KeyValueOverrides(TypedDict, total=False):
    """Each field of KeyValueOptions, for type checkers and editors."""

    provider: str
    key_prefix: str
    timeout_seconds: float
    sqlite_path: str
    redis_connection_string: str
    redis_database: int | None
    toskastore_base_url: str
    toskastore_auth_token: str
    toskastore_enable_key_index: bool
    toskastore_key_index_key: str


def open_store(
    service_name: str, environ: Mapping[str, str] | None = None, **overrides: Unpack[KeyValueOverrides]
) -> "StoreOpening":
    """The store that the environment chooses; `overrides` are fields of `KeyValueOptions`.

    Closed at the end of the block. Raises ConfigError for settings that cannot work, never for a server that is down.
    """
    return StoreOpening(service_name, os.environ if environ is None else environ, overrides)


class StoreOpening:
    """What stands between `async with` and `as store`: it becomes a store when the block is entered, once."""

    def __init__(self, service_name: str, environ: Mapping[str, str], overrides: KeyValueOverrides) -> None:
        self._service_name = service_name
        self._environ = environ
        self._overrides = overrides
        self._store: JsonStore | None = None

    async def __aenter__(self) -> KeyValueStore:
        if self._store is not None:
            raise RuntimeError("this store has been opened already; call open_store() again for another")
        options = key_value_options(self._environ, **self._overrides)
        store = self._store = await _open(self._service_name, options, self._environ)
        log.info("key-value store: %r", store)
        return store

    async def __aexit__(self, *_: object) -> None:
        if self._store is not None:
            await self._store.close()

    if not TYPE_CHECKING:  # checkers know better that there is no such attribute

        def __getattr__(self, name: str) -> Never:
            raise AttributeError(
                f"{name!r} is of the store, which is open inside of a block: use `async with open_store(…) as store:`",
                name=name,
                obj=self,
            )


async def _open(service_name: str, options: KeyValueOptions, environ: Mapping[str, str]) -> JsonStore:
    prefix = whole_prefix(options.key_prefix if options.key_prefix.strip() else service_name)
    backend = await _BACKENDS[options.provider](options, prefix, environ)
    try:
        return JsonStore(backend, prefix, options.timeout_seconds)
    except BaseException:
        await backend.close()
        raise


def _part(module: str, needs: str) -> Any:
    """A provider's module, imported only when it is chosen: nobody needs redis-py to use SQLite."""
    return load(f"toska_mesh.sdk.kv.{module}", needs, extra=module)


async def _open_sqlite(options: KeyValueOptions, prefix: str, environ: Mapping[str, str]) -> Backend:
    module = _part("sqlite", "sqlite3")
    backend = module.SqliteBackend(sqlite_path(options) or module.default_path(environ))
    await backend.open()
    opened: Backend = backend
    return opened


async def _open_redis(options: KeyValueOptions, prefix: str, environ: Mapping[str, str]) -> Backend:
    address = parse(options.redis_connection_string, "redis_connection_string")
    if address.database is None:
        address = replace(address, database=options.redis_database)
    backend: Backend = _part("redis", "redis").RedisBackend(address)
    return backend


async def _open_toska_store(options: KeyValueOptions, prefix: str, environ: Mapping[str, str]) -> Backend:
    backend: Backend = _part("toska_store", "aiohttp").ToskaStoreBackend(
        options.toskastore_base_url,
        options.toskastore_auth_token,
        key_prefix=prefix,
        index_key=options.toskastore_key_index_key,
        keeps_index=options.toskastore_enable_key_index,
    )
    return backend


_BACKENDS: Final[Mapping[str, Callable[[KeyValueOptions, str, Mapping[str, str]], Awaitable[Backend]]]] = {
    "SQLite": _open_sqlite,
    "Redis": _open_redis,
    "ToskaStore": _open_toska_store,
}
