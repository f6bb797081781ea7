"""A to-do list with state: GET, POST, PUT and DELETE /todos. `python examples/todo.py`.

The state outlives the process and is shared by all instances that use the same store: SQLite on this machine, or what
MESH_KV_PROVIDER names. Nothing in here knows which.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

from aiohttp import web

from toska_mesh.errors import KeyValueUnavailableError
from toska_mesh.sdk import KeyValueStore, open_store, serve

STORE = web.AppKey("store", KeyValueStore)
routes = web.RouteTableDef()


@dataclass(frozen=True)
class Todo:
    title: str
    is_done: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@routes.get("/todos")
async def list_todos(request: web.Request) -> web.Response:
    todos = await request.app[STORE].list("todo:", as_type=Todo)
    return web.json_response([shown(todo) for todo in sorted(todos, key=lambda todo: todo.created_at)])


@routes.post("/todos")
async def add_todo(request: web.Request) -> web.Response:
    title, is_done = await asked(request)
    todo = Todo(title, is_done)
    await request.app[STORE].set(f"todo:{todo.id}", todo)
    return web.json_response(shown(todo), status=201, headers={"Location": f"/todos/{todo.id}"})


@routes.get("/todos/{id}")
async def get_todo(request: web.Request) -> web.Response:
    return web.json_response(shown(await stored(request)))


@routes.put("/todos/{id}")
async def change_todo(request: web.Request) -> web.Response:
    old = await stored(request)
    title, is_done = await asked(request)
    todo = replace(old, title=title, is_done=is_done)
    await request.app[STORE].set(f"todo:{todo.id}", todo)
    return web.json_response(shown(todo))


@routes.delete("/todos/{id}")
async def delete_todo(request: web.Request) -> web.Response:
    if not await request.app[STORE].delete(f"todo:{request.match_info['id']}"):
        raise web.HTTPNotFound
    return web.Response(status=204)


async def stored(request: web.Request) -> Todo:
    todo = await request.app[STORE].get(f"todo:{request.match_info['id']}", as_type=Todo)
    if todo is None:
        raise web.HTTPNotFound
    return todo


async def asked(request: web.Request) -> tuple[str, bool]:
    """Title and state from the body; anything else in it is a mistake of the caller."""
    try:
        body = await request.json()
    except json.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("title"), str) or body.keys() - {"title", "isDone"}:
        raise web.HTTPBadRequest(text='The body should be as {"title": "Buy milk", "isDone": false}')
    return body["title"], body.get("isDone") is True


def shown(todo: Todo) -> dict[str, object]:
    created_at = todo.created_at.isoformat()
    return {"id": todo.id, "title": todo.title, "isDone": todo.is_done, "createdAt": created_at}


@web.middleware
async def say_when_the_store_is_down(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """An outage is no empty list: 503, and a caller that asks again later is served."""
    try:
        return await handler(request)
    except KeyValueUnavailableError as exc:
        return web.Response(status=503, text=str(exc), headers={"Retry-After": "1"})


def make_app(environ: Mapping[str, str] | None = None) -> web.Application:
    async def keep_store(app: web.Application) -> AsyncIterator[None]:
        async with open_store("todo", environ) as app[STORE]:
            yield

    app = web.Application(middlewares=[say_when_the_store_is_down])
    app.add_routes(routes)
    app.cleanup_ctx.append(keep_store)
    return app


if __name__ == "__main__":
    serve(make_app(), name="todo")
