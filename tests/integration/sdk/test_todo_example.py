"""The example service with state: what it answers, and that its state outlives it."""

import importlib.util
import json
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from tests.support.ports import free_port
from tests.support.process import ServerProcess, http_get

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "todo.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("todo_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["todo_example"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def client(example: ModuleType, tmp_path: Path) -> AsyncIterator[TestClient]:
    app = example.make_app({"MESH_KV_SQLITE_PATH": str(tmp_path / "kv.sqlite3")})
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_todo_lives_from_post_to_delete(client: TestClient) -> None:
    async with client.post("/todos", json={"title": "Buy milk & <tea> ☕"}) as answer:
        assert answer.status == 201
        todo = await answer.json()
        location = answer.headers["Location"]
    assert (todo["title"], todo["isDone"]) == ("Buy milk & <tea> ☕", False)
    async with client.get(location) as answer:
        assert await answer.json() == todo
    async with client.put(location, json={"title": "Buy milk", "isDone": True}) as answer:
        assert await answer.json() == {**todo, "title": "Buy milk", "isDone": True}
    async with client.get("/todos") as answer:
        assert await answer.json() == [{**todo, "title": "Buy milk", "isDone": True}]
    assert (await client.delete(location)).status == 204
    assert (await client.delete(location)).status == 404
    assert (await client.get(location)).status == 404
    assert (await client.put(location, json={"title": "x"})).status == 404
    async with client.get("/todos") as answer:
        assert await answer.json() == []


async def test_todos_come_in_the_order_they_were_added(client: TestClient) -> None:
    for number in range(5):
        await client.post("/todos", json={"title": f"{number}"})
    async with client.get("/todos") as answer:
        assert [todo["title"] for todo in await answer.json()] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"title":7}', b'{"title":"x","done":true}'])
async def test_a_body_that_is_no_todo_is_refused(client: TestClient, body: bytes) -> None:
    async with client.post("/todos", data=body) as answer:
        assert answer.status == 400
        assert "title" in await answer.text()


async def test_a_store_that_is_down_is_a_503_and_not_an_empty_list(example: ModuleType) -> None:
    environ = {
        "MESH_KV_PROVIDER": "Redis",
        "MESH_KV_REDIS_CONNECTION_STRING": f"127.0.0.1:{free_port()}",
        "MESH_KV_TIMEOUT_SECONDS": "0.2",
    }
    async with TestClient(TestServer(example.make_app(environ))) as client, client.get("/todos") as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert "cannot be reached" in await answer.text()


class TodoProcess(ServerProcess):
    def __init__(self) -> None:
        super().__init__("todo")
        self.port = free_port()

    def command(self) -> Sequence[str]:
        return [sys.executable, str(EXAMPLE)]

    def environment(self) -> Mapping[str, str]:
        return {
            "MESH_SERVICE_HOST": "127.0.0.1",
            "MESH_SERVICE_PORT": str(self.port),
            "MESH_SERVICE_REGISTER": "false",
            "MESH_SERVICE_HEARTBEAT": "false",
        }

    def is_ready(self) -> bool:
        return http_get(f"http://127.0.0.1:{self.port}/todos")[0] == 200


async def test_todos_are_there_again_after_a_crash_and_after_a_stop() -> None:
    with TodoProcess() as service:
        url = f"http://127.0.0.1:{service.port}/todos"
        async with aiohttp.ClientSession() as client, client.post(url, json={"title": "Survive"}) as answer:
            assert answer.status == 201
        service.kill()
        service.start()
        assert service.stop() == 0
        service.start()
        todos = json.loads(http_get(f"http://127.0.0.1:{service.port}/todos")[1])
        assert [todo["title"] for todo in todos] == ["Survive"]
        with socket.create_connection(("127.0.0.1", service.port)):
            assert service.stop() == 0
