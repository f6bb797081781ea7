"""`toska wait`: a deploy script goes on when every gateway has applied what it waits for.

Two steps: follow the service in the registry until it is as wanted, then wait for the gateways. Since the first may
have changed during the second, it is looked at once more at the end.
"""

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import click
import uvloop

from toska_mesh.errors import ConfigError, MeshError
from toska_mesh.model import HealthStatus, Instance, ServiceName
from toska_mesh.model.metadata import VERSION
from toska_mesh.model.rules import problem_with_service_name
from toska_mesh.registry.consul import ConsulClient, ConsulGatewayBarrier, ConsulOptions, ConsulRegistry
from toska_mesh.registry.consul.service import ConsulServiceFollower
from toska_mesh.router import RoutingPolicy
from toska_mesh.router.eligibility import judge
from toska_mesh.settings import ConsulSettings, load, setting

MAX_NAMED = 5
"""Instances that a message names; of more it says how many there are."""


class WaitSettings(ConsulSettings):
    """What the daemons use to find the registry, and what decides about routes."""

    expose: Literal["mesh", "all"] = setting("GATEWAY_EXPOSE", "mesh", "Which services the gateways route.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What has to be true of a service. All that is given counts."""

    version: str = ""
    is_only_version: bool = False
    count: int = 1
    gone: str = ""
    expose_all: bool = False

    def missing(self, instances: Sequence[Instance]) -> str:
        """What is not as wanted yet, in words; empty when all is."""
        parts = []
        if self.gone:
            parts.append(self._not_gone(instances))
        if self.version or not self.gone:
            parts.append(self._too_few(instances))
        if self.is_only_version:
            parts.append(self._others(instances))
        return "; ".join(part for part in parts if part)

    def met(self, instances: Sequence[Instance]) -> str:
        """The same words once it is true."""
        parts = []
        if self.gone:
            is_there = any(instance.id == self.gone for instance in instances)
            parts.append(f"{self.gone} is {'draining' if is_there else 'not registered'}")
        if self.version:
            count = len(self._of_version(instances))
            only = "only " if self.is_only_version else ""
            parts.append(f"{only}{_count(count, 'healthy instance')} of version {self.version}")
        elif not self.gone:
            parts.append(f"{_count(len(self._routed(instances)), 'instance')} in use")
        return ", ".join(parts)

    def _not_gone(self, instances: Sequence[Instance]) -> str:
        here = [one for one in instances if one.id == self.gone and not one.is_draining]
        return f"{_named(here[0])} is registered and not draining" if here else ""

    def _too_few(self, instances: Sequence[Instance]) -> str:
        if self.version:
            found, what = len(self._of_version(instances)), f"healthy instances of version {self.version}"
        else:
            found, what = len(self._routed(instances)), "instances that get requests"
        return "" if found >= self.count else f"{found} of {self.count} {what} ({_list(instances)})"

    def _others(self, instances: Sequence[Instance]) -> str:
        others = [one for one in self._routed(instances) if one.metadata.get(VERSION, "") != self.version]
        return f"other versions still get requests: {_list(others)}" if others else ""

    def _of_version(self, instances: Sequence[Instance]) -> list[Instance]:
        return [
            one
            for one in instances
            if one.status is HealthStatus.HEALTHY
            and not one.is_draining
            and one.metadata.get(VERSION, "") == self.version
        ]

    def _routed(self, instances: Sequence[Instance]) -> list[Instance]:
        """By what the registry says; a health monitor may object to some of them."""
        judgements = judge(instances, {}, None, RoutingPolicy(expose_all=self.expose_all, schemes=())).judgements
        return [judgement.instance for judgement in judgements if not judgement.reason]


async def wait(settings: ConsulSettings, service: ServiceName, wanted: Wanted, timeout_seconds: float) -> str:
    """The line that says what is true now. Raises MeshError when it is not true in time, or never can be."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    missing, trouble = "", ""

    def note_trouble(reason: str) -> None:
        nonlocal trouble
        trouble = reason

    async with ConsulClient(ConsulOptions.from_settings(settings)) as client:
        barrier, registry = ConsulGatewayBarrier(client), ConsulRegistry(client)
        follower = ConsulServiceFollower(client, service, on_trouble=note_trouble)
        async with contextlib.aclosing(follower.updates()) as updates:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        instances = await anext(updates)
                except TimeoutError:
                    words = "; ".join(part for part in (missing, trouble) if part)
                    raise _late(service, timeout_seconds, words or "the registry did not answer in time") from None
                if missing := wanted.missing(instances):
                    continue
                report = await barrier.wait_applied(service, deadline)
                if not report.is_applied:
                    raise _late(
                        service, timeout_seconds, f"{wanted.met(instances)} in the registry, but {report.reason}"
                    )
                instances = await registry.instances(service, deadline)
                missing = wanted.missing(instances)  # it may have changed meanwhile
                if not missing:
                    return f"{service}: {wanted.met(instances)}; {report.reason} (index {report.index})"


def _late(service: ServiceName, timeout_seconds: float, words: str) -> MeshError:
    return MeshError(f"{service}, after {timeout_seconds:g} s: {words}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(instances: Sequence[Instance]) -> str:
    if not instances:
        return "none is registered"
    shown = ", ".join(_named(one) for one in instances[:MAX_NAMED])
    rest = len(instances) - MAX_NAMED
    return f"{shown} and {rest} more" if rest > 0 else shown


def _named(instance: Instance) -> str:
    version = instance.metadata.get(VERSION, "")
    state = "draining" if instance.is_draining else instance.status.label
    return f"{instance.id}{f' of version {version}' if version else ''}: {state}"


@click.command("wait", short_help="Wait until every gateway has applied a change.")
@click.argument("service")
@click.option("--version", metavar="V", default="", help="Instances of this version (metadata `version`) are healthy.")
@click.option("--only", is_flag=True, help="With --version: and no other version gets requests.")
@click.option("--gone", metavar="ID", default="", help="This instance is draining or not registered any more.")
@click.option("--count", metavar="N", type=click.IntRange(min=1), default=None, help="At least so many.  [default: 1]")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True, max=86_400),
    default=60.0,
    show_default=True,
    help="Give up after this time.",
)
def wait_command(service: str, version: str, only: bool, gone: str, count: int | None, timeout: float) -> None:
    """Wait until SERVICE is as wanted, and every gateway has applied it.

    Without an option: until at least one instance gets requests. Several options must be true at once.

    Exit code 0 with one line that says what is true, 1 with what is missing when the time is up, 2 for wrong
    usage. The registry is found by CONSUL_ADDRESS and its companions, as by the daemons.
    """
    if only and not version:
        raise click.UsageError("--only says something about --version; give both")
    if count is not None and gone and not version:
        raise click.UsageError("--count is about instances that are there, --gone about one that is not")
    if math.isnan(timeout):  # which is neither too small nor too large
        raise click.UsageError("--timeout nan is no number of seconds")
    if problem := problem_with_service_name(service):
        raise click.UsageError(f"SERVICE {problem}")
    try:
        settings = load(WaitSettings, os.environ).settings
    except ConfigError as exc:
        for line in str(exc).splitlines():
            click.echo(f"toska wait: {line}", err=True)
        sys.exit(2)
    wanted = Wanted(version, only, count or 1, gone, expose_all=settings.expose == "all")
    try:
        click.echo(uvloop.run(wait(settings, ServiceName(service), wanted, timeout)))
    except ConfigError as exc:
        click.echo(f"toska wait: {exc}", err=True)
        sys.exit(2)
    except MeshError as exc:
        click.echo(f"toska wait: {exc}", err=True)
        sys.exit(1)
