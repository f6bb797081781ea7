"""A stateless service: GET /add?a=1&b=2, or POST /add with {"a": 1, "b": 2}. Any number of instances may run."""

from aiohttp import web

from toska_mesh.sdk import serve


def sum_of(a: object, b: object) -> web.Response:
    try:
        numbers = [float(str(value)) for value in (a, b)]
    except ValueError:
        raise web.HTTPBadRequest(text="a and b must be numbers") from None
    return web.json_response({"a": numbers[0], "b": numbers[1], "sum": sum(numbers)})


async def add_query(request: web.Request) -> web.Response:
    return sum_of(request.query.get("a"), request.query.get("b"))


async def add_body(request: web.Request) -> web.Response:
    try:
        body = await request.json()
        return sum_of(body["a"], body["b"])
    except (ValueError, TypeError, KeyError):
        raise web.HTTPBadRequest(text='the body must be {"a": number, "b": number}') from None


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/add", add_query)
    app.router.add_post("/add", add_body)
    return app


if __name__ == "__main__":
    serve(make_app, name="adder")
