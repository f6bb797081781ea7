"""What a service may be given as its app, and the words for what it may not.

Asked when the app is given, not with the first request: a WSGI function would be registered and answer nothing.
"""

import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.lifespan import AppStartError

if TYPE_CHECKING:  # aiohttp is not imported for those that do not use it
    from aiohttp import web

    AnyASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
    """Frameworks type scope and messages each in their own way."""
    AiohttpApp: TypeAlias = web.Application | Sequence[web.AbstractRouteDef]
    App: TypeAlias = AiohttpApp | AnyASGIApp | Callable[[], object]
else:
    AnyASGIApp = AiohttpApp = App = object


def is_aiohttp(app: object) -> bool:
    """Without importing aiohttp for those that do not use it."""
    web = sys.modules.get("aiohttp.web")
    return web is not None and isinstance(app, web.Application)


async def made(given: object) -> object:
    """The app itself: what was given, what the routes belong to, or what the factory makes. Raises ConfigError."""
    app = with_routes(given)
    if not is_aiohttp(app) and _required_parameters(app) == 0:
        app = with_routes(await _from_factory(cast(Callable[[], object], app)))
    return ready(app)


def ready(given: object) -> object:
    """The same for what needs no loop, so no factory. Raises ConfigError."""
    app = with_routes(given)
    parameters = 3 if is_aiohttp(app) else _required_parameters(app)
    if parameters == 3:
        return app
    hints = {
        0: "; call the function that makes the app, and give what it returns",
        2: "; a WSGI app needs an adapter, such as a2wsgi's WSGIMiddleware",
    }
    hint = "; give the app itself, not its name" if isinstance(app, str) else hints.get(parameters, "")
    raise ConfigError(
        f"{type(app).__name__} is no aiohttp Application, no list of aiohttp routes, no ASGI app and no function that"
        f" makes one{hint}"
    )


def with_routes(app: object) -> object:
    """An Application for routes that come without one, such as `[web.get("/hello", hello)]`. Raises ConfigError."""
    web = sys.modules.get("aiohttp.web")
    is_table = web is not None and isinstance(app, web.RouteTableDef)
    if not is_table and not isinstance(app, (list, tuple)):
        return app
    items = tuple(cast(Sequence[object], app))
    right = '`web.get("/hello", hello)` makes one'
    if not items:
        raise ConfigError(f"the list of routes is empty; {right}")
    for number, item in enumerate(items, 1):
        if web is None or not isinstance(item, web.AbstractRouteDef):
            raise ConfigError(f"item {number} of the list is no aiohttp route but {_named(item)}; {right}")
    application = cast(Any, web).Application()
    application.add_routes(items)
    return application


def _named(item: object) -> str:
    name = getattr(item, "__qualname__", "")
    text = f"{type(item).__name__} {name}" if name else repr(item)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _required_parameters(app: object) -> int:
    """How many a caller has to give; -1 for what cannot be called."""
    if not callable(app):
        return -1
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return 3  # a callable of some extension: an ASGI app, as far as one can tell
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return 3 if takes_any or (len(required) < 3 <= len(parameters)) else len(required)


async def _from_factory(factory: Callable[[], object]) -> object:
    try:
        app = factory()
        return await cast(Awaitable[object], app) if inspect.isawaitable(app) else app
    except Exception as exc:
        name = getattr(factory, "__qualname__", repr(factory))
        raise AppStartError(f"the app factory {name} failed: {type(exc).__name__}: {exc}") from exc
