"""The three places for state, as the contract sees them: settings for `open_store`, and the text as it lies there."""

import json
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import redis
from tests.support.servers import RedisServer, ToskaStoreServer


class SqlitePlace:
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kv.sqlite3"

    @property
    def environ(self) -> dict[str, str]:
        return {"MESH_KV_SQLITE_PATH": str(self.path)}

    def raw_read(self, key: str) -> str | None:
        with closing(sqlite3.connect(self.path)) as db:
            row = db.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def raw_write(self, key: str, text: str) -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("INSERT INTO entries VALUES (?, ?, NULL)", (key, text))


class RedisPlace:
    kind = "redis"

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    @property
    def environ(self) -> dict[str, str]:
        return {"MESH_KV_PROVIDER": "Redis", "MESH_KV_REDIS_CONNECTION_STRING": self.server.address}

    def raw_read(self, key: str) -> str | None:
        with redis.Redis(port=self.server.port) as client:
            found = client.get(key)
        return found and found.decode()

    def raw_write(self, key: str, text: str) -> None:
        with redis.Redis(port=self.server.port) as client:
            client.set(key, text)


class ToskaStorePlace:
    kind = "toska-store"

    def __init__(self, server: ToskaStoreServer) -> None:
        self.server = server

    @property
    def environ(self) -> dict[str, str]:
        return {"MESH_KV_PROVIDER": "ToskaStore", "MESH_KV_TOSKASTORE_BASE_URL": self.server.url}

    def raw_read(self, key: str) -> str | None:
        try:
            with urllib.request.urlopen(self._url(key), timeout=5) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as refusal:
            with refusal:
                if refusal.code == 404:
                    return None
                raise

    def raw_write(self, key: str, text: str) -> None:
        request = urllib.request.Request(
            self._url(key),
            json.dumps({"value": text}).encode(),
            {"Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=5).close()

    def _url(self, key: str) -> str:
        return f"{self.server.url}/kv/{quote(key, safe='')}"


Place = SqlitePlace | RedisPlace | ToskaStorePlace
