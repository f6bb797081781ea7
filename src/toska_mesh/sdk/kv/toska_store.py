"""Values in ToskaStore, over its HTTP API. Keys, texts and the key index are those of the C# runtime's provider.

The server forgives much in silence, so this side is strict: the whole key is one encoded path segment, a time to live
is a whole number of milliseconds (anything else would live for ever), a delete is conditional (a plain one answers 200
for what was never there), and a key outside ASCII is not written (the server loses such records when it restarts). A
404 counts as "no such key" only when it says so: a wrong base URL must not look like an empty store.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import yarl

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.backend import Page

DEFAULT_INDEX_KEY: Final = "__keys"
_INDEX_TRIES: Final = 16
_SHOWN_CHARACTERS: Final = 200
_NOT_NOW: Final = frozenset({429, 502, 503, 504})

_HINTS: Final[Mapping[int, str]] = {
    401: "the token is missing or wrong",
    403: "this server is a read-only follower: name the leader",
    413: "the value is larger than the server takes",
}


class ToskaStoreBackend:
    """Implements `Backend`. Connections are kept and opened as needed.

    `index_key`: the key, below the prefix, under which the C# runtime keeps a list of all keys when its option
    EnableKeyIndex is on. It is never listed and not for use. `keeps_index`: keep that list up to date, and read it from
    a server that cannot list keys by itself.
    """

    repeats_keys = False

    def __init__(
        self, base_url: str, token: str = "", *, key_prefix: str, index_key: str = "", keeps_index: bool = False
    ) -> None:
        self._base = _checked_url(base_url)
        self._prefix = key_prefix
        self._index_key = key_prefix + (index_key or DEFAULT_INDEX_KEY)
        self._keeps_index = keeps_index
        self.name = f"ToskaStore at {self._base.rstrip('/')}"
        headers = {"Authorization": f"Bearer {token}"} if token.strip() else {}
        self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None))
        if hasattr(self._session, "_retry_connection"):
            # aiohttp sends PUT and DELETE again by itself when a kept connection breaks; `JsonStore` knows when that
            # would turn the answer into a lie.
            self._session._retry_connection = False

    async def write(self, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        self._check_writable(key)
        body: dict[str, object] = {"value": text}
        if ttl_ms is not None:
            body["ttl_ms"] = ttl_ms
        if if_absent:
            body["if_absent"] = True
        status, answer = await self._ask("PUT", _path(key), key, body=body, expected=(200, 412))
        if status == 200 and answer.get("ok") is not True:
            raise self._strange("PUT", key, status, answer)
        if status == 200:
            await self._note_in_index(key, is_there=True)
        return status == 200

    async def read(self, key: str) -> str | None:
        text, _ = await self._entry(key)
        return text

    async def read_many(self, keys: Sequence[str]) -> Sequence[str | None]:
        _, answer = await self._ask("POST", "kv/mget", keys[0], body={"keys": list(keys)})
        values = answer.get("values")
        if not isinstance(values, dict):
            raise self._strange("MGET", keys[0], 200, answer)
        return [self._checked_text(key, values.get(key)) for key in keys]

    async def remove(self, key: str) -> bool:
        self._check_not_index(key)
        status, _ = await self._ask("DELETE", f"{_path(key)}?if_present=true", key, expected=(200, 404, 412))
        await self._note_in_index(key, is_there=False)
        return status == 200

    async def page(self, prefix: str, size: int, cursor: str | None) -> Page:
        query = f"prefix={_encoded(prefix)}&limit={size}"
        after = f"&cursor={_encoded(cursor)}" if cursor else ""
        status, answer = await self._ask("GET", f"kv/keys?{query}{after}", prefix, expected=(200, 404))
        if status == 404:
            return await self._page_of_index(prefix)
        keys, following = answer.get("keys"), answer.get("next_cursor")
        if not isinstance(keys, list) or not (following is None or isinstance(following, str)):
            raise self._strange("LIST", prefix, status, answer)
        return Page(tuple(key for key in keys if key != self._index_key), following or None)

    async def close(self) -> None:
        await self._session.close()

    # Entries

    async def _entry(self, key: str) -> tuple[str | None, int]:
        """Text and version; None and 0 when there is none."""
        status, answer = await self._ask("GET", _path(key), key, expected=(200, 404))
        if status == 404:
            return None, 0
        metadata = answer.get("metadata")
        version = metadata.get("version") if isinstance(metadata, dict) else None
        return self._checked_text(key, answer.get("value")), version if isinstance(version, int) else 0

    def _checked_text(self, key: str, value: object) -> str | None:
        if value is None or isinstance(value, str):
            return value
        raise KeyValueError(f"{self.name} answered for {key!r} with a value that is no text")

    def _check_writable(self, key: str) -> None:
        self._check_not_index(key)
        if not key.isascii():
            raise KeyValueError(
                f"{self.name} cannot keep {key!r}: it loses entries whose key is not ASCII when it restarts"
            )

    def _check_not_index(self, key: str) -> None:
        if key == self._index_key:
            raise KeyValueError(f"the key {key!r} holds the list of all keys (KeyIndexKey) and cannot be used")

    # The C# runtime's list of keys

    async def _note_in_index(self, key: str, is_there: bool) -> None:
        """Conditional on the version that was read, so that writers at the same time lose nothing."""
        if not self._keeps_index:
            return
        name = key.removeprefix(self._prefix)
        for _ in range(_INDEX_TRIES):
            names, version = await self._index()
            if (name in names) is is_there:
                return
            wanted = [*names, name] if is_there else [other for other in names if other != name]
            condition: dict[str, object] = {"if_version": version} if version else {"if_absent": True}
            body = {"value": json.dumps(wanted, separators=(",", ":")), **condition}
            status, _ = await self._ask("PUT", _path(self._index_key), self._index_key, body=body, expected=(200, 412))
            if status == 200:
                return
        raise KeyValueUnavailableError(f"{self.name} has too many writers at once for its key index")

    async def _index(self) -> tuple[list[str], int]:
        text, version = await self._entry(self._index_key)
        try:
            names = json.loads(text) if text else []
        except ValueError:
            names = None
        if not isinstance(names, list):
            raise KeyValueError(f"{self.name} holds at {self._index_key!r} something that is no list of keys")
        return [name for name in dict.fromkeys(names) if isinstance(name, str)], version

    async def _page_of_index(self, prefix: str) -> Page:
        if not self._keeps_index:
            raise KeyValueError(
                f"{self.name} cannot list keys (404); with EnableKeyIndex in every service the index is used instead"
            )
        names, _ = await self._index()
        keys = [key for name in names if (key := self._prefix + name).startswith(prefix)]
        texts = await self.read_many(keys) if keys else ()
        # What has expired is still in the list: nobody takes it out.
        return Page(tuple(key for key, text in zip(keys, texts, strict=True) if text is not None), None)

    # Requests

    async def _ask(
        self, method: str, path: str, key: str, *, body: object = None, expected: tuple[int, ...] = (200,)
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object. Everything that is not expected is an error that says what the server said."""
        url = yarl.URL(self._base + path, encoded=True)  # yarl would make %2F and %3A plain again
        try:
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                status, raw = response.status, await response.read()
        except aiohttp.ClientConnectorError as exc:
            raise KeyValueUnavailableError(f"{self.name} cannot be reached: {exc}", may_have_happened=False) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise KeyValueUnavailableError(f"{self.name} broke off: {str(exc) or type(exc).__name__}") from exc
        answer = _json_object(raw)
        # Only the store's own 404 names the key; a proxy or another path of the server does not.
        if (
            status in expected
            and answer is not None
            and (status != 404 or "key" in answer or path.startswith("kv/keys"))
        ):
            return status, answer
        shown = raw[:_SHOWN_CHARACTERS].decode(errors="replace")
        said = f"{self.name} {method} failed for {key!r}: {status} {shown}"
        if status in _NOT_NOW:
            raise KeyValueUnavailableError(said, may_have_happened=status not in (429, 503))
        hint = _HINTS.get(
            status, "is this a ToskaStore, and is the base URL right?" if answer is None or status == 404 else ""
        )
        raise KeyValueError(f"{said} ({hint})" if hint else said)

    def _strange(self, operation: str, key: str, status: int, answer: object) -> KeyValueError:
        return KeyValueError(
            f"{self.name} {operation} for {key!r} was answered {status} {str(answer)[:_SHOWN_CHARACTERS]}, "
            "which is not how a ToskaStore answers"
        )


def _checked_url(text: str) -> str:
    """With a slash at the end, so that a path in it stays. ConfigError for what is no address of a server."""
    try:
        url = yarl.URL(text)
    except ValueError:
        url = yarl.URL()
    if url.user or url.password:
        raise ConfigError("the base URL of ToskaStore holds a user or a password; its token is a setting of its own")
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ConfigError(f"the base URL of ToskaStore is {text!r}; it should be as http://localhost:4000")
    return text if text.endswith("/") else f"{text}/"


def _encoded(text: str) -> str:
    return quote(text, safe="")


def _path(key: str) -> str:
    return f"kv/{_encoded(key)}"


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
