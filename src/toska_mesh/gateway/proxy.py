"""The proxy: what every connection shares, and what happens to a request between its head and its instance.

Order of the policies: the gateway's own health paths (never limited, never behind authentication), CORS preflights,
rate limit, authentication, the dashboard's paths, then the routes, each with its own policy (`routepolicy`). State that
the connections touch hangs on this one object; everything lives on one event loop.
"""

import asyncio
import math
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from toska_mesh.gateway import problems
from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.gateway.admission import Admission, limit_key, places_for, share_of
from toska_mesh.gateway.auth import KeySetFetcher, TokenChecker
from toska_mesh.gateway.client import ClientConnection
from toska_mesh.gateway.cors import Cors
from toska_mesh.gateway.dashboard import PREFIX as DASHBOARD
from toska_mesh.gateway.dialling import Dialler
from toska_mesh.gateway.exchange import Exchange, Phase
from toska_mesh.gateway.forwarded import TrustedProxies
from toska_mesh.gateway.goodbye import close_idle
from toska_mesh.gateway.local import AsyncHandler, Handler, LocalAnswer
from toska_mesh.gateway.pathroutes import PathRoutes
from toska_mesh.gateway.paths import service_key, split_service
from toska_mesh.gateway.request import ALLOW, VIA, KnownBlocks, Peer, RequestHead
from toska_mesh.gateway.routepolicy import Limiter, Operator, RoutePolicy, combine, host_name
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.sharedlimit import SharedRateLimiter, create_table
from toska_mesh.gateway.stats import NO_SERVICE, GatewayStats
from toska_mesh.gateway.tunnel import Tunnel
from toska_mesh.gateway.turns import Turns
from toska_mesh.gateway.upstream import CoarseClock, Upstream, UpstreamConnection
from toska_mesh.guard import ContainedTasks, DialError, Guard, Guarded, HttpProber
from toska_mesh.model import Instance
from toska_mesh.model.metadata import SCHEME
from toska_mesh.resilience import (
    BreakerPolicy,
    Failure,
    RateLimiter,
    RecentLatency,
    RetryBudget,
    RetryPolicy,
    State,
    SuspicionPolicy,
)
from toska_mesh.router import RouteTable, Service, Target
from toska_mesh.telemetry import event_log
from toska_mesh.telemetry.trace import RequestIds

TICK_SECONDS = 0.1

log = event_log("gateway")


class Proxy(CoarseClock):
    """See the module. Made within a running loop; `run` must be going while connections are served.

    `limiter` replaces the one that the settings ask for, when it is shared with other processes; `route_limits` is what
    the limits of single routes are made of then.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        tasks: asyncio.TaskGroup,
        *,
        access_log: AccessLog | None,
        tokens: TokenChecker | None = None,
        key_set: KeySetFetcher | None = None,
        upstream_tls: ssl.SSLContext | None = None,
        dialler: Dialler | None = None,
        limiter: Limiter | None = None,
        route_limits: SharedRateLimiter | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        # The loop's own clock stands still within an iteration and has steps of a millisecond under uvloop; this is
        # the same clock (CLOCK_MONOTONIC) at full resolution.
        self.clock = time.monotonic
        self.now = self.clock()
        self.turns = Turns(self.loop)
        self.rng = rng or random.Random()
        self.new_ids = RequestIds(self.rng)
        self.known_blocks = KnownBlocks()
        self.is_draining = False
        self.table: RouteTable | None = None
        self._upstreams: list[Upstream] = []
        self._departed: list[Upstream] = []
        """Instances that left the table while they still owed answers: deadlines and suspicion hold for them too."""
        self.clients: set[ClientConnection] = set()
        self.tunnels: set[Tunnel] = set()
        self.access_log = access_log
        self.stats = GatewayStats(self._gauges, self._breaker_states)
        if access_log is not None:
            self.stats.dropped_log_lines = lambda: access_log.dropped_lines
        self.retry_budget = RetryBudget()
        self._tasks = ContainedTasks(tasks)
        self._dialler = dialler or Dialler(settings.connect_timeout_seconds)
        prober = HttpProber(self._dialler, "toska-gateway")
        self.guard = Guard(Upstream, self._tasks, self.clock, SuspicionPolicy(), self._note_breaker, prober)
        self.max_header_bytes = settings.max_header_bytes
        self.max_headers = settings.max_headers
        self.header_timeout = settings.header_timeout_seconds
        self.idle_timeout = settings.idle_timeout_seconds
        self.keep_alive = settings.keep_alive_seconds
        self._max_idle = settings.upstream_max_idle
        self._upstream_idle = settings.upstream_idle_seconds
        self.min_bytes_per_second = settings.min_bytes_per_second
        places = places_for(settings.max_connections)
        self.admission = Admission(self.clients, places, share_of(places, settings.max_connections_per_client))
        self.prefix = settings.route_prefix
        self._prefix_bytes = settings.route_prefix.encode()
        self.stale_since: float | None = None
        self._breaker_policy = BreakerPolicy(settings.breaker_failure_threshold, settings.breaker_open_seconds)
        self._latencies: dict[str, RecentLatency] = {}
        self._upstream_tls = upstream_tls
        self._proxies = TrustedProxies(settings.trusted_networks)
        self._cors = Cors(settings.is_any_origin_allowed, settings.cors_allowed_origins)
        if limiter is None and settings.rate_limit_enabled:
            limiter = RateLimiter(settings.rate_limit_permits, settings.rate_limit_window_seconds)
        self._limiter = limiter
        self._tokens = tokens
        self._key_set = key_set
        self.operator = Operator(
            RoutePolicy(
                settings.response_timeout_seconds,
                settings.total_timeout_seconds,
                RetryPolicy(
                    settings.retry_count,
                    settings.retry_base_ms / 1000,
                    settings.retry_backoff,
                    settings.retry_jitter_ms / 1000,
                ),
                settings.max_request_bytes,
                needs_token=tokens is not None,
            ),
            settings.metadata_may_relax,
            _reserved_paths(self.prefix),
        )
        self.unrouted = self.operator.default
        """What holds for a request until its route is known."""
        self._plain: Mapping[bytes, Service] = {}
        """Services whose policy asks for nothing but what every request goes through, by path segment. All of a path
        below the prefix and one of these names is theirs: nothing of it is the dashboard's."""
        own = split_service(DASHBOARD.encode(), self._prefix_bytes)
        self._own_segment = own[0] if own is not None else b""
        self.path_routes: PathRoutes | None = None
        self._particular: Mapping[str, Service] = {}
        """Services whose metadata asks for something, by name in lower case."""
        self._with_paths: list[Service] = []
        self._expose_all = settings.expose == "all"
        self._route_limits = route_limits
        self._has_public_routes = False
        self.local: Mapping[bytes, Handler] = {}
        """Exact paths that are answered at once, before any policy."""
        self.guarded_prefix = b""
        """Paths below this are answered by `guarded_handler`, behind all policies."""
        self.guarded_handler: AsyncHandler | None = None

    # -- requests

    def handle(self, exchange: Exchange) -> None:
        """Decide what happens to a request whose head is complete."""
        head = exchange.head
        if head.refusal is not None:
            exchange.refuse(*head.refusal)
            return
        local = self.local.get(head.path)
        if local is not None:
            answer = local(exchange)
            exchange.answer(answer.status, _content_type(answer), answer.body, "ok")
            return
        exchange.response_fields = VIA + head.id_fields
        if head.origin and self._answers_preflight(exchange):
            return
        if self._limiter is not None and self._is_over_limit(exchange, self._limiter):
            return
        if self._tokens is not None:
            why = self._tokens.check(head.authorization, exchange.started)
            if why and not (self._has_public_routes and self._is_public(exchange)):
                self._refuse_token(exchange, self._tokens, why)
                return
        self._dispatch(exchange)

    def _dispatch(self, exchange: Exchange) -> None:
        head = exchange.head
        service, path = None, b""
        split = split_service(head.path, self._prefix_bytes)
        if split is not None:
            name, path = split
            service = self._plain.get(name)
        if service is None:
            found = self._settle_uncommon(exchange, split)
            if found is None:
                return
            service, path = found
        exchange.route = service.name
        self.retry_budget.record_request(exchange.started)
        limit = service.policy.max_request_bytes
        if limit and head.content_length > limit:
            exchange.refuse(problems.TOO_LARGE, f"the request body is larger than {limit} bytes")
            return
        exchange.forward(service, path)

    def _settle_uncommon(self, exchange: Exchange, split: tuple[bytes, bytes] | None) -> tuple[Service, bytes] | None:
        """What is not simply the path of a plain service; None when it has been answered."""
        head, table = exchange.head, self.table
        if self.guarded_handler is not None and head.path.startswith(self.guarded_prefix):
            self._run_local(exchange, self.guarded_handler)
            return None
        if table is None:
            exchange.refuse(problems.NOT_READY, "", b"Retry-After: 1\r\n")
            return None
        if head.path == b"*":
            exchange.answer(204, ALLOW, b"", "ok")
            return None
        found = self._find(head, table)
        if found is None:
            if split is None:
                exchange.refuse(problems.NO_ROUTE, f"routes begin with {self.prefix}<service>")
            else:
                exchange.refuse(problems.NO_ROUTE, f"there is no service {split[0].decode('utf-8', 'replace')!r}")
            return None
        exchange.route = found[0].name
        return None if self._is_refused_by_policy(exchange, found[0].policy) else found

    def _find(self, head: RequestHead, table: RouteTable) -> tuple[Service, bytes] | None:
        """The service of a request and the path that it sees: by its name, else by host and path."""
        split = split_service(head.path, self._prefix_bytes)
        if split is not None:
            name, path = split
            service = table.by_bytes.get(name) or table.services.get(service_key(name))
            if service is not None:
                policy: RoutePolicy = service.policy
                if policy.hosts is not None and not policy.hosts.match(host_name(head.host)):
                    return None
                return service, head.path if policy.keeps_prefix else path
        found = self.path_routes.find(head.host, head.path) if self.path_routes is not None else None
        if found is None:
            return None
        service, rest = found
        return service, head.path if service.policy.keeps_prefix else rest or b"/"

    def _is_public(self, exchange: Exchange) -> bool:
        """Whether the request goes to a service for which the operator lets metadata do away with tokens."""
        head, table = exchange.head, self.table
        if table is None or (self.guarded_handler is not None and head.path.startswith(self.guarded_prefix)):
            return False
        found = self._find(head, table)
        return found is not None and bool(found[0].policy.is_public)

    def _is_refused_by_policy(self, exchange: Exchange, policy: RoutePolicy) -> bool:
        if policy.is_closed:
            exchange.refuse(problems.NO_KEYS)
            return True
        return policy.limiter is not None and self._is_over_route_limit(exchange, policy.limiter)

    def _answers_preflight(self, exchange: Exchange) -> bool:
        head = exchange.head
        exchange.replaces_cors = True
        if head.method == b"OPTIONS" and head.cors_method:
            fields = self._cors.preflight_fields(head.origin)
            if fields is None:
                exchange.refuse(problems.FORBIDDEN_ORIGIN)
            else:
                exchange.answer(204, fields, b"", "preflight")
            return True
        exchange.response_fields += self._cors.response_fields(head.origin)
        return False

    def _is_over_limit(self, exchange: Exchange, limiter: Limiter) -> bool:
        decision = limiter.admit(limit_key(exchange.head.client_address), exchange.started)
        exchange.replaces_rate_limit = True
        exchange.response_fields += b"RateLimit-Limit: %d\r\nRateLimit-Remaining: %d\r\nRateLimit-Reset: %d\r\n" % (
            decision.limit,
            decision.remaining,
            math.ceil(decision.reset_seconds),
        )
        if decision.is_admitted:
            return False
        wait = max(1, int(-(-decision.retry_after_seconds // 1)))
        exchange.refuse(problems.RATE_LIMITED, "", b"Retry-After: %d\r\n" % wait)
        return True

    def _is_over_route_limit(self, exchange: Exchange, limiter: Limiter) -> bool:
        """The same for the limit of a route. Of two limits the client is told the one that it meets first."""
        told = exchange.response_fields if exchange.replaces_rate_limit else b""
        if told:
            exchange.response_fields = told.rpartition(_LIMIT)[0]
        if self._is_over_limit(exchange, limiter):
            return True
        if told and _remaining(told) < _remaining(exchange.response_fields):
            exchange.response_fields = told
        return False

    def _refuse_token(self, exchange: Exchange, tokens: TokenChecker, why: str) -> None:
        if self._key_set is not None and not tokens.knows_key_of(exchange.head.authorization):
            exchange.phase = Phase.FETCHING_KEYS
            self._tasks.create_task(self._check_with_new_keys(exchange, tokens), name="fetch keys")
            return
        error = b"" if not exchange.head.authorization else b', error="invalid_token"'
        exchange.refuse(problems.UNAUTHORIZED, why, b'WWW-Authenticate: Bearer realm="toska"%b\r\n' % error)

    async def _check_with_new_keys(self, exchange: Exchange, tokens: TokenChecker) -> None:
        if self._key_set is not None:
            await self._key_set.fetch()
        if exchange.phase is not Phase.FETCHING_KEYS:
            return  # the client left, or was refused for something else
        exchange.phase = Phase.BETWEEN
        exchange.begin(self.clock())
        why = tokens.check(exchange.head.authorization, self.clock())
        if why:
            exchange.refuse(
                problems.UNAUTHORIZED, why, b'WWW-Authenticate: Bearer realm="toska", error="invalid_token"\r\n'
            )
        else:
            self._dispatch(exchange)

    def _run_local(self, exchange: Exchange, handler: AsyncHandler) -> None:
        exchange.phase = Phase.LOCAL
        exchange.route = ""
        self._tasks.create_task(self._answer_locally(exchange, handler), name="answer locally")

    async def _answer_locally(self, exchange: Exchange, handler: AsyncHandler) -> None:
        try:
            answer = await handler(exchange)
        except Exception:
            log.exception("local_handler_failed", path=exchange.head.path.decode("latin-1"))
            exchange.refuse(problems.INTERNAL)
            return
        exchange.answer(answer.status, _content_type(answer), answer.body, "ok")

    # -- connections

    def add_client(self, client: ClientConnection) -> bool:
        """False when there is no place for it; the client is then told and closed."""
        self.clients.add(client)
        return self.admission.admit(client, client.peer.address, client.peer.is_trusted, self.now)

    def remove_client(self, client: ClientConnection) -> None:
        """The connection is gone."""
        self.clients.discard(client)
        self.admission.release(client)

    def make_peer(self, address: str, scheme: str) -> Peer:
        mapped = address.removeprefix("::ffff:")
        return Peer(mapped if "." in mapped else address, scheme, self._proxies)

    def make_upstream(self, instance: Instance) -> Target:
        """For the route table: the object that an instance is represented by."""
        latency = self._latencies.get(instance.service)
        if latency is None:
            latency = self._latencies[instance.service] = RecentLatency()
        tls = self._upstream_tls if instance.metadata.get(SCHEME, "").strip().lower() == "https" else None
        return Upstream(instance, self._breaker_policy, latency, tls, self._max_idle)

    def use_upstream_tls(self, context: ssl.SSLContext) -> None:
        """New connections to instances with `scheme=https` are made with this; open ones go on."""
        self._upstream_tls = context
        for upstream in self.upstreams():
            if upstream.tls is not None:
                upstream.tls = context

    def use_table(self, table: RouteTable) -> None:
        """Swap the table. What runs goes on; pools of departed instances are closed."""
        previous, changes = self.table, table.changes_since(self.table)
        self._decide_policies(table, changes)
        self.table = table
        for target in table.departed:
            if isinstance(target, Upstream):
                target.leave()
                if target.in_flight:
                    self._departed.append(target)
        self._note_upstreams(previous, table, changes)
        gone = [name for name in changes if name not in table.services]
        if previous is not None and (gone or any(name not in previous.services for name in changes)):
            for name in gone:
                self._latencies.pop(previous.services[name].name, None)
            self.stats.keep_only({service.name for service in table.services.values()})

    def _note_upstreams(self, previous: RouteTable | None, table: RouteTable, changes: Iterable[str]) -> None:
        """Add those that came to the old list and drop those that left."""
        come: list[Upstream] = []
        gone: set[Target] = set()
        for name in changes:
            old = previous.services.get(name) if previous is not None else None
            new = table.services.get(name)
            before = set(old.all_targets()) if old is not None else set()
            after = new.all_targets() if new is not None else ()
            come += [target for target in after if target not in before and isinstance(target, Upstream)]
            gone |= before.difference(after)
        known = self._upstreams if previous is not None else []
        if gone:
            known = [upstream for upstream in known if upstream not in gone]
        self._upstreams = known + come

    def _decide_policies(self, table: RouteTable, changes: Iterable[str]) -> None:
        """For services that are new in this table; then what follows from the policies of all."""
        particular = dict(self._particular) if self.table is not None else {}
        for name in changes:
            service = table.services.get(name)
            if service is not None and service.policy is None:
                service.policy = self._decide_policy(service)
            if service is not None and service.policy is not self.operator.default:
                particular[name] = service
            else:
                particular.pop(name, None)
        self._particular = particular
        has_public = False
        special: list[Service] = []
        with_paths: list[Service] = []
        unrouted = self.operator.default
        for service in particular.values():
            policy: RoutePolicy = service.policy
            if policy.paths:
                with_paths.append(service)
            if policy.is_public:
                has_public = True
            if policy.is_special:
                special.append(service)
            if policy.largest_request_bytes > unrouted.largest_request_bytes:
                unrouted = policy
        self._has_public_routes = has_public
        if unrouted is not self.operator.default:
            unrouted = replace(self.operator.default, max_request_bytes=unrouted.max_request_bytes)
        self.unrouted = unrouted
        if special or self._own_segment in table.by_bytes:
            plain = dict(table.by_bytes)
            plain.pop(self._own_segment, None)
            for service in special:
                for segment in (service.name.encode(), service.name.lower().encode()):
                    if plain.get(segment) is service:
                        del plain[segment]
            self._plain = plain
        else:
            self._plain = table.by_bytes
        if with_paths != self._with_paths:
            self._with_paths = with_paths
            self.path_routes = PathRoutes(with_paths, self.operator.closed_paths) if with_paths else None

    def _decide_policy(self, service: Service) -> RoutePolicy:
        instances = (standing.target.instance for standing in service.everything)
        policy = combine(
            (instance for instance in instances if self._expose_all or instance.is_mesh_member), self.operator
        )
        limit = policy.rate_limit
        if limit is None:
            return policy
        if self._route_limits is None:
            descriptor = create_table()
            self._route_limits = SharedRateLimiter(descriptor, limit.permits, limit.window_seconds)
            os.close(descriptor)
        limiter = self._route_limits.for_route(service.name.lower(), limit.permits, limit.window_seconds)
        return replace(policy, limiter=limiter)

    def present(self, service: Service) -> Service | None:
        """The service as the newest table has it; None when it is gone."""
        return self.table.service(service.name) if self.table is not None else None

    def dial(self, upstream: Upstream, exchange: Exchange) -> None:
        """Connect to the instance for this exchange; if it does not wait any more by then, for the next one."""
        self._tasks.create_task(
            self._dial(upstream, exchange, exchange.attempts), name=f"dial {upstream.instance.endpoint.authority}"
        )

    async def _dial(self, upstream: Upstream, exchange: Exchange, attempt: int) -> None:
        why = ""
        connection: UpstreamConnection | None = None
        try:
            _, connection = await self._dialler.dial(
                upstream.instance.endpoint, upstream.tls, lambda: UpstreamConnection(upstream, self)
            )
        except DialError as exc:
            why = str(exc)
        if connection is not None and connection.transport.is_closing():
            connection, why = None, "the instance closed the connection at once"
        is_wanted = exchange.is_dialling and exchange.upstream is upstream and exchange.attempts == attempt
        if connection is None:
            if is_wanted:
                exchange.on_dial_failed(why)
        elif is_wanted:
            exchange.on_dialled(connection)
        else:
            upstream.give_back(connection, self.clock())

    # -- time

    async def run(self) -> None:
        """Until cancelled: look for silence, stuck connections and idle ones."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.now = self.clock()
            ticks += 1
            try:
                self._tick(self.now, ticks)
            except Exception:
                log.exception("tick_failed")  # a bug that one connection met must not end the watch over all others

    def _tick(self, now: float, ticks: int) -> None:
        self.guard.tick(self.upstreams(), now)
        if ticks % 5 == 0:
            self._expire_clients(now)
        if ticks % 10 == 0:
            if self._departed:
                self._departed = [upstream for upstream in self._departed if upstream.in_flight]
            for upstream in self.upstreams():
                if upstream.idle:
                    upstream.close_idle(now - self._upstream_idle)
        if self.access_log is not None:
            self.access_log.flush()

    def upstreams(self) -> list[Upstream]:
        """Every instance of the table, and departed ones that still owe an answer."""
        return self._upstreams + self._departed if self._departed else self._upstreams

    def _expire_clients(self, now: float) -> None:
        for client in list(self.clients):
            if client.deadline <= now:
                client.expire()
            client.check_progress(now)
        for tunnel in list(self.tunnels):
            if tunnel.deadline <= now:
                tunnel.expire()

    # -- the end

    async def drain(self, seconds: float) -> None:
        """Finish what is in flight, for so long at most; then cut what is left."""
        self.is_draining = True
        deadline = self.clock() + seconds
        while self.clock() < deadline:
            now = self.clock()
            for client in list(self.clients):
                if client.is_idle and now - client.idle_since >= IDLE_GRACE_SECONDS:
                    close_idle(client.transport)
            if not (self.clients or self.tunnels):
                break
            await asyncio.sleep(0.02)
        for tunnel in list(self.tunnels):
            tunnel.cut("drained")
        for client in list(self.clients):
            client.cut_off("drained")
        for upstream in self.upstreams():
            upstream.leave()
        if self.access_log is not None:
            self.access_log.flush()

    # -- counting

    def record(self, exchange: Exchange) -> None:
        """Called once by every exchange at its end."""
        now = self.clock()
        stats = self.stats.of(exchange.route or NO_SERVICE)
        stats.observe(exchange.status, now - exchange.started, exchange.outcome, exchange.bytes_in, exchange.bytes_out)
        if exchange.attempts > 1:
            stats.retries += exchange.attempts - 1
        if self.access_log is not None:
            self.access_log.add(exchange, now)

    def note_try_failed(self, exchange: Exchange, failure: Failure, why: str) -> None:
        stats = self.stats.of(exchange.route)
        stats.tries_failed[failure.value] += 1
        log.debug(
            "try_failed",
            service=exchange.route,
            instance=exchange.upstream.instance.id if exchange.upstream else None,
            attempt=exchange.attempts,
            failure=failure.value,
            reason=why,
            request_id=exchange.head.request_id,
        )

    def _note_breaker(self, target: Guarded, previous: State, current: State) -> None:
        self.stats.breaker_changes[target.instance.service, current.value] += 1

    def _breaker_states(self) -> Mapping[tuple[str, str], int]:
        return Counter((upstream.instance.service, upstream.circuit.state.value) for upstream in self._upstreams)

    def _gauges(self) -> dict[str, tuple[str, float]]:
        table = self.table
        upstreams = self._upstreams
        in_flight = sum(upstream.in_flight for upstream in self.upstreams())
        return {
            "toska_gateway_client_connections": (
                "Client connections now.",
                len(self.clients) + len(self.tunnels),
            ),
            "toska_gateway_tunnels": ("WebSocket and other tunnels now.", len(self.tunnels)),
            "toska_gateway_client_connections_limit": ("How many there may be.", self.admission.places),
            "toska_gateway_client_connections_heaviest": (
                "Held by the one client address that holds most, trusted proxies apart.",
                self.admission.most_held,
            ),
            "toska_gateway_client_connections_refused": (
                "Refused since the start, as there was no place.",
                self.admission.refused,
            ),
            "toska_gateway_client_connections_evicted": (
                "Idle ones closed since the start, to make room.",
                self.admission.evicted,
            ),
            "toska_gateway_upstream_connections_idle": ("Pooled.", sum(len(upstream.idle) for upstream in upstreams)),
            "toska_gateway_requests_in_flight": ("Now.", in_flight),
            "toska_gateway_breakers_not_closed": (
                "Instances whose breaker is open or half-open.",
                sum(upstream.circuit.state is not State.CLOSED for upstream in upstreams),
            ),
            "toska_gateway_instances_suspect": ("Silent ones.", sum(upstream.is_suspect for upstream in upstreams)),
            "toska_gateway_services": ("Services routed.", len(table.services) if table else 0),
            "toska_gateway_instances": ("Instances known.", len(upstreams)),
            "toska_gateway_table_version": ("Grows with every change.", table.version if table else 0),
            "toska_gateway_table_stale_seconds": (
                "Since when the registry has not answered; 0 while it does.",
                self.clock() - self.stale_since if self.stale_since is not None else 0.0,
            ),
        }


_LIMIT = b"RateLimit-Limit: "

IDLE_GRACE_SECONDS = 0.5
"""While draining, an idle client connection is closed only after this: its next request may be on its way."""


def _reserved_paths(prefix: str) -> tuple[str, ...]:
    """What no service can get by metadata: the gateway's own answers, and where services stand by their names."""
    # With the prefix / a service's name wins over a path, so nothing has to be kept free for names.
    return ("/health/", DASHBOARD, *(() if prefix == "/" else (prefix,)))


def _remaining(fields: bytes) -> int:
    """What the last `RateLimit-Remaining` in these header lines says."""
    return int(fields.rpartition(b"RateLimit-Remaining: ")[2].partition(b"\r\n")[0])


def _content_type(answer: LocalAnswer) -> bytes:
    return b"Content-Type: %b\r\nCache-Control: no-store\r\n" % answer.content_type.encode()
