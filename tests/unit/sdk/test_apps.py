"""What may be given as an app, and what is said about the rest: by `serve`, `join` and the middleware alike."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from fastapi import FastAPI

from toska_mesh.errors import ConfigError
from toska_mesh.sdk import apps
from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.serving import join


async def hello(request: web.Request) -> web.Response:
    return web.Response()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    return


class ASGI:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        return


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


WRONG = [
    pytest.param(wsgi, "WSGI app needs an adapter", id="WSGI"),
    pytest.param(5, "int is no aiohttp Application", id="a number"),
    pytest.param("module:app", "not its name", id="a name"),
    pytest.param([], "the list of routes is empty", id="no routes"),
    pytest.param([web.get("/", hello), hello], "item 2 of the list is no aiohttp route but function hello", id="item"),
    pytest.param(web.RouteTableDef(), "the list of routes is empty", id="an empty table"),
]


@pytest.mark.parametrize("app", [FastAPI(), asgi, ASGI(), web.Application()], ids=lambda app: type(app).__name__)
def test_apps_of_every_kind_are_taken(app: object) -> None:
    assert apps.ready(app) is app


@pytest.mark.parametrize(("app", "words"), WRONG)
async def test_what_is_no_app_is_refused_at_once_with_what_would_be_right(app: Any, words: str) -> None:
    options = ServiceOptions(name="orders")
    ways: list[Callable[[], object]] = [
        lambda: join(app, options, metrics_registry=None),
        lambda: MeshMiddleware(app, options, metrics_registry=None),
    ]
    for way in ways:
        with pytest.raises(ConfigError, match=words):
            way()
    made: Awaitable[object] = apps.made(app)
    with pytest.raises(ConfigError, match=words):
        await made


def test_only_serve_takes_a_function_that_makes_the_app() -> None:
    with pytest.raises(ConfigError, match="call the function that makes the app"):
        apps.ready(FastAPI.openapi.__get__(FastAPI()))


def test_an_app_joins_once() -> None:
    options = ServiceOptions(name="orders")
    joined = join(asgi, options, metrics_registry=None)
    with pytest.raises(ConfigError, match="has joined already"):
        join(joined, options, metrics_registry=None)
    application = join([web.get("/", hello)], options, metrics_registry=None)
    assert isinstance(application, web.Application)
    with pytest.raises(ConfigError, match="has joined the mesh already"):
        join(application, options, metrics_registry=None)


def test_the_middleware_of_one_kind_of_app_is_nothing_to_the_other() -> None:
    with pytest.raises(ConfigError, match="join"):
        MeshMiddleware(web.Application(), metrics_registry=None)  # type: ignore[arg-type]
