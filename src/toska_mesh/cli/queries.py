"""`toska routes` and `toska instances`: what a running gateway knows, as tables for people or as its own JSON."""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import aiohttp
import click
import orjson
import uvloop
from rich import box
from rich.table import Table

from toska_mesh.cli.daemons import GATEWAY, url_of, value_of
from toska_mesh.cli.view import render
from toska_mesh.errors import ConfigError, MeshError
from toska_mesh.settings import load

ANSWER_SECONDS = 5.0
INSTANCE_COLUMNS: Mapping[str, str] = {
    "service": "service",
    "id": "id",
    "address": "address",
    "status": "status",
    "breaker": "breaker",
    "inFlight": "in flight",
    "share": "share",
    "eligible": "eligible",
}
"""What decides about an instance, by key and title; `--json` has the rest."""
ROUTE_COLUMNS: Mapping[str, str] = {
    "service": "service",
    "path": "path",
    "strategy": "strategy",
    "instances": "instances",
    "eligible": "eligible",
    "inPanic": "in panic",
    "warnings": "warnings",
}
_WIDTH = 1000
"""More than any table: an address cut into pieces is worse than a line that the terminal breaks."""


class QueryError(MeshError):
    """The gateway's admin API did not give an answer to show."""


def admin_url(environ: Mapping[str, str]) -> str:
    """Where this machine's gateway has its admin API, by the gateway's own settings. Raises ConfigError."""
    settings = load(GATEWAY.settings, environ).settings
    if not value_of(settings, "GATEWAY_ADMIN_PORT"):
        raise ConfigError("GATEWAY_ADMIN_PORT=0 does not say where the admin API is; use --admin URL")
    return url_of(settings, "GATEWAY_ADMIN_HOST", "GATEWAY_ADMIN_PORT")


def base_of(admin: str) -> str:
    """What `--admin` names, as a URL to put paths after: `host:port` means HTTP."""
    return (admin if "://" in admin else f"http://{admin}").rstrip("/")


async def fetch(url: str) -> bytes:
    """The body of a 200 answer. Raises QueryError in words for people."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as answer:
            body = await answer.read()
    except TimeoutError as exc:
        raise QueryError(f"{url} did not answer within {ANSWER_SECONDS:g} s") from exc
    except aiohttp.ClientError as exc:
        raise QueryError(f"no gateway answers at {url}; is it running? --admin URL asks another one") from exc
    if answer.status != 200:
        raise QueryError(f"{url} answered {answer.status}: {_told(body)}")
    return body


def _told(body: bytes) -> str:
    """What a refusal says: the detail of a problem document (RFC 9457), else its beginning."""
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        problem = None
    detail = problem.get("detail") if isinstance(problem, dict) else ""
    return str(detail) if detail else body[:200].decode("utf-8", "replace")


def rows_of(body: object) -> list[Mapping[str, object]]:
    """The objects to show: the answer itself if it is a list, else its first list of objects."""
    candidates: Iterable[object] = [body] if isinstance(body, list) else []
    if isinstance(body, dict):
        candidates = body.values()
    for candidate in candidates:
        if isinstance(candidate, list) and all(isinstance(row, dict) for row in candidate):
            return candidate
    raise QueryError("the gateway's answer holds no list to show; --json prints it")


def cell(value: object) -> str:
    """A value in one table cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if text.isprintable() else repr(text)


def to_table(rows: Sequence[Mapping[str, object]], titles: Mapping[str, str] | None = None) -> Table:
    """One column per key, in the order in which the keys first appear; of those in `titles` only, if given."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    titles = {key: titles[key] for key in titles if key in keys} if titles else {key: key for key in keys}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in titles.values():
        table.add_column(title)
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in titles))
    return table


def with_reason(row: Mapping[str, object]) -> Mapping[str, object]:
    """An instance with `eligible`: yes, or no and why. Who gets nothing has no share either."""
    if "isEligible" not in row:
        return row
    why = cell(row.get("why")) if not row["isEligible"] else _why_blocked(row)
    if not why and row["isEligible"]:
        return {**row, "eligible": "yes"}
    return {**row, "eligible": f"no: {why}", "share": 0}


def _why_blocked(row: Mapping[str, object]) -> str:
    """The registry and the monitors would have it, and the gateway's own experience is against it."""
    retry = row.get("breakerRetryInSeconds")
    if row.get("breaker") == "open":
        when = f"in {math.ceil(retry)} s" if isinstance(retry, int | float) and retry > 0 else "with the next request"
        return f"breaker open, tried again {when}"
    if row.get("breaker") == "half-open":
        return "breaker half-open, one request tries it"
    return cell(row.get("why")) if row.get("isSuspect") else ""


def with_ignored(row: Mapping[str, object]) -> Mapping[str, object]:
    """A route whose warnings also name the metadata that does not count, and why."""
    ignored, warnings = row.get("ignored"), row.get("warnings")
    if not isinstance(ignored, list) or not isinstance(warnings, list):
        return row
    told = [
        f"{item.get('key')}={item.get('value')} of {item.get('instance')} is ignored: {item.get('reason')}"
        for item in ignored
        if isinstance(item, dict)
    ]
    return {**row, "warnings": [*warnings, *told]}


def unrouted(body: object) -> list[str]:
    """A line for every registered service that gets no route, with the reason."""
    left_out = body.get("unrouted") if isinstance(body, dict) else None
    if not isinstance(left_out, dict):
        return []
    return [f"not routed: {cell(name)} ({cell(reason)})" for name, reason in left_out.items()]


def _show(path: str, service: str, admin: str, as_json: bool, titles: Mapping[str, str]) -> None:
    query = f"?service={quote(service, safe='')}" if service else ""
    try:
        body = uvloop.run(fetch(base_of(admin or admin_url(os.environ)) + path + query))
        if as_json:
            click.echo(body)
            return
        answer = orjson.loads(body)
        rows = [with_ignored(with_reason(row)) for row in rows_of(answer)]
    except (MeshError, orjson.JSONDecodeError) as exc:
        click.echo(f"toska: {exc}", err=True)
        sys.exit(1)
    if not rows and not service:
        click.echo("nothing yet: no service of the mesh is registered")
    elif rows:
        use_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        click.echo(render(to_table(rows, titles), use_colour, _WIDTH), nl=False)
    for line in unrouted(answer):
        click.echo(line)


_admin_option = click.option(
    "--admin", metavar="URL", default="", help="The gateway's admin API.  [default: by GATEWAY_ADMIN_HOST and _PORT]"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")


_service_argument = click.argument("service", default="")


@click.command(short_help="Show the gateway's routes.")
@_service_argument
@_admin_option
@_json_option
def routes(service: str, admin: str, as_json: bool) -> None:
    """Show the gateway's routes: which service a path leads to. With SERVICE only that one."""
    _show("/routes", service, admin, as_json, ROUTE_COLUMNS)


@click.command(short_help="Show every instance with its state.")
@_service_argument
@_admin_option
@_json_option
def instances(service: str, admin: str, as_json: bool) -> None:
    """Show every instance with its state, and why it gets no requests. With SERVICE only that service's."""
    _show("/instances", service, admin, as_json, INSTANCE_COLUMNS)
