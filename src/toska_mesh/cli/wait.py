"""`toska wait`: a deploy script goes on when every gateway has applied what it waits for.

Two steps: follow the service in the registry until it is as wanted, then wait for the gateways. Since the first may
have changed during the second, it is looked at once more at the end. Whoever has to wait for longer than a moment is
told for what, on standard error: at a terminal and in the log of a deploy alike.
"""

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Never

import click
import uvloop

from toska_mesh.aio import Latest
from toska_mesh.cli.registry_address import RESOLVE_SECONDS, Chosen, check_host, choose_registry
from toska_mesh.errors import ConfigError, MeshError
from toska_mesh.model import HealthStatus, Instance, ServiceName
from toska_mesh.model.metadata import VERSION
from toska_mesh.model.rules import problem_with_service_name
from toska_mesh.registry.consul import ConsulClient, ConsulGatewayBarrier, ConsulOptions, ConsulRegistry
from toska_mesh.registry.consul.service import ConsulServiceFollower
from toska_mesh.router import RoutingPolicy
from toska_mesh.router.eligibility import judge
from toska_mesh.settings import ConsulSettings, setting

MAX_NAMED = 5
"""Instances that a message names; of more it says how many there are."""
SETTLE_SECONDS = 2.0
"""How long something has to be missing until it is told."""


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
        here = next((one for one in instances if one.id == self.gone), None)
        if here is None:
            return ""
        if not here.is_draining:
            return f"{_named(here)} is registered and not draining"
        # Better one that is leaving than nobody: the last one gets requests until it is gone.
        is_routed = any(one is here for one in self._routed(instances))
        return f"{here.id} is draining, and gets requests as long as there is nobody better" if is_routed else ""

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


class Progress:
    """Tells what is being waited for, when it has been so for a while: a rollout changes it many times a second."""

    def __init__(self, tell: Callable[[str], None], *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._tell = tell
        self._settle_seconds = settle_seconds
        self._words = Latest[str]()

    def note(self, words: str) -> None:
        self._words.set(words)

    async def run(self) -> Never:
        told, version = "", 0
        while True:
            await self._words.newer_than(version)
            await asyncio.sleep(self._settle_seconds)
            words, version = await self._words.newer_than(version)
            if words != told:
                self._tell(words)
                told = words


async def wait(
    chosen: Chosen[WaitSettings],
    service: ServiceName,
    wanted: Wanted,
    timeout_seconds: float,
    tell: Callable[[str], None] = lambda line: None,
) -> str:
    """The line that says what is true now. Raises MeshError when it is not true in time, or never can be.

    `tell` gets a line for people whenever it has to wait for something else.
    """
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    await check_host(chosen.settings.consul_address, chosen.variable, min(RESOLVE_SECONDS, timeout_seconds))
    progress = Progress(lambda words: tell(f"{service}: waiting: {words}"))
    failure: MeshError | None = None
    line = ""
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(progress.run(), name="tell what is missing")
        try:
            async with ConsulClient(ConsulOptions.from_settings(chosen.settings)) as client:
                waiting = _Waiting(client, chosen.origin, service, wanted, progress.note)
                line = await waiting.run(deadline)
        except _LateError as exc:
            failure = MeshError(f"{service}, after {timeout_seconds:g} s: {exc}")
        except MeshError as exc:
            failure = exc
        telling.cancel()
    if failure is not None:
        raise failure
    return f"{service}: {line}"


class _LateError(MeshError):
    """The time is up; says what is missing."""


class _Waiting:
    """One wait: what the registry says, then what the gateways say, and what is missing meanwhile."""

    def __init__(
        self, client: ConsulClient, origin: str, service: ServiceName, wanted: Wanted, note: Callable[[str], None]
    ) -> None:
        self._client, self._service, self._wanted, self._note = client, service, wanted, note
        self._origin = origin
        self._where = f"registry {client.address} ({origin})"
        self._missing = f"{self._where} has not answered"
        self._trouble = self._met = ""
        note(self._missing)

    async def run(self, deadline: float) -> str:
        barrier, registry = ConsulGatewayBarrier(self._client), ConsulRegistry(self._client)
        follower = ConsulServiceFollower(self._client, self._service, on_trouble=self._note_trouble)
        async with contextlib.aclosing(follower.updates()) as updates:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        instances = await anext(updates)
                except TimeoutError:
                    raise _LateError(self._words()) from None
                if not self._is_met(instances):
                    continue
                report = await barrier.wait_applied(self._service, deadline, self._note_gateways)
                if not report.is_applied:
                    raise _LateError(self._before(report.reason))
                if self._is_met(await registry.instances(self._service, deadline)):  # it may have changed meanwhile
                    return f"{self._met}; {report.reason} (index {report.index})"

    def _is_met(self, instances: Sequence[Instance]) -> bool:
        self._missing = self._wanted.missing(instances)
        if self._missing:
            if not instances:  # perhaps another registry knows it
                self._missing += f"; asked is {self._where}"
            self._note(self._words())
            return False
        self._met = self._wanted.met(instances)
        return True

    def _words(self) -> str:
        if self._trouble:
            known = self._missing if self._where not in self._missing else ""
            return "; ".join(part for part in (known, f"{self._trouble} ({self._origin})") if part)
        return self._missing

    def _note_trouble(self, reason: str) -> None:
        self._trouble = reason
        self._note(self._words())

    def _note_gateways(self, reason: str) -> None:
        self._note(self._before(reason))

    def _before(self, reason: str) -> str:
        return f"{self._met} in the registry, but {reason}"


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
    usage. What it waits for is told on standard error, after 2 seconds and whenever it changes.

    The registry is found by CONSUL_ADDRESS and its companions, as by the daemons. Where that is not set,
    REGISTRY_PORT (and REGISTRY_HOST, REGISTRY_TOKEN) lead to the embedded registry of a `toska up` with the
    same variables. Otherwise it is http://localhost:8500.
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
        chosen = choose_registry(WaitSettings, os.environ)
        wanted = Wanted(version, only, count or 1, gone, expose_all=chosen.settings.expose == "all")
        click.echo(uvloop.run(wait(chosen, ServiceName(service), wanted, timeout, _tell)))
    except ConfigError as exc:
        for line in str(exc).splitlines():
            _tell(line)
        sys.exit(2)
    except MeshError as exc:
        _tell(str(exc))
        sys.exit(1)


def _tell(line: str) -> None:
    click.echo(f"toska wait: {line}", err=True)
