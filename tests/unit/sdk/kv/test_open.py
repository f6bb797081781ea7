"""What opening a store needs and what it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.kv.open import open_store

LIGHT = """
import asyncio, sys
from toska_mesh.sdk.kv.open import open_store

async def main():
    async with open_store("x", {"XDG_STATE_HOME": sys.argv[1]}) as store:
        await store.set("key", 1)

asyncio.run(main())
print(*(name for name in ("redis", "aiohttp", "grpc", "pydantic", "orjson") if name in sys.modules))
"""


def test_the_embedded_store_loads_nothing_but_the_standard_library(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


async def test_redis_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "toska_mesh.sdk.kv.redis", raising=False)
    with pytest.raises(ConfigError, match=r"toska-mesh\[redis\]"):
        async with open_store("x", {"MESH_KV_PROVIDER": "Redis"}):
            pass


async def test_a_service_without_a_name_needs_a_prefix(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="needs a key prefix or the name of the service"):
        async with open_store(" ", environ):
            pass


async def test_a_user_without_a_home_is_told_where_to_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "~")  # what expanduser leaves when it finds none
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(ConfigError, match="MESH_KV_SQLITE_PATH"):
        async with open_store("x", {}):
            pass


def test_a_store_outside_of_its_block_says_how_to_open_it() -> None:
    with pytest.raises(AttributeError, match="use `async with open_store"):
        _ = open_store("x", {}).get  # type: ignore[attr-defined]


async def test_each_opening_is_for_one_block() -> None:
    opening = open_store("x", {"MESH_KV_PROVIDER": "ToskaStore"})
    async with opening:
        pass
    with pytest.raises(RuntimeError, match="opened already"):
        async with opening:
            pass
