"""The whole mesh as processes on one registry: registry, discovery, gateway, health monitor. And services that join it.

The services are strangers: a client generated from `proto/` alone, and an HTTP server in the test's own loop.
"""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from types import ModuleType
from typing import Any, Self

import grpc
import grpc.aio
from aiohttp import web
from tests.support.load import Answer, Client, Load
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, DaemonProcess, RegistryServer, http_get
from tests.support.wait import eventually

METADATA = {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"}
"""What every SDK of the family writes."""

HEALTHY, UNHEALTHY, DEGRADED = 1, 2, 3


class Mesh:
    """One mesh; started and stopped by `with`. All of its methods that do not say `async` block."""

    def __init__(self, kind: str, rabbitmq_url: str) -> None:
        self.kind = kind
        self.registry = ConsulServer(persistent=True) if kind == "consul" else RegistryServer()
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.port, self.admin_port, self.monitor_port = free_port(), free_port(), free_port()
        where = {"CONSUL_ADDRESS": self.registry.url}
        self.discovery = DaemonProcess(
            "toska-discovery",
            where
            | {
                "DISCOVERY_HOST": "127.0.0.1",
                "DISCOVERY_PORT": str(self.grpc_port),
                "DISCOVERY_HTTP_PORT": str(self.rest_port),
                "RABBITMQ_URL": rabbitmq_url,
            },
            f"http://127.0.0.1:{self.rest_port}/health/ready",
        )
        self.gateway = DaemonProcess(
            "toska-gateway",
            where
            | {
                "GATEWAY_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(self.port),
                "GATEWAY_ADMIN_PORT": str(self.admin_port),
                "GATEWAY_RATE_LIMIT_ENABLED": "false",
                "GATEWAY_SLOW_START_SECONDS": "0",
                "GATEWAY_ACCESS_LOG": "false",
                "DASHBOARD_HEALTHMONITOR_URL": f"http://127.0.0.1:{self.monitor_port}",
            },
            f"http://127.0.0.1:{self.port}/health/ready",
        )
        self.monitor = DaemonProcess(
            "toska-healthmonitor",
            where
            | {
                "HEALTHMONITOR_HOST": "127.0.0.1",
                "HEALTHMONITOR_PORT": str(self.monitor_port),
                "HEALTHMONITOR_PROBE_INTERVAL_SECONDS": "0.3",
                "HEALTHMONITOR_FAILURE_THRESHOLD": "2",
            },
            f"http://127.0.0.1:{self.monitor_port}/health/ready",
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            for process in self._processes:
                self._stack.callback(process.close)
            for process in self._processes:
                process.start(wait=False)  # in whatever order they come up
            for process in self._processes:
                process.wait_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _processes(self) -> tuple[ConsulServer | DaemonProcess, ...]:
        return self.registry, self.discovery, self.gateway, self.monitor

    def assert_unharmed(self) -> None:
        """Nothing has crashed, whatever the test did to the others."""
        for process in self._processes:
            assert process.is_running, process.tail()
        for daemon in (self.discovery, self.gateway, self.monitor):
            assert "Traceback" not in daemon.log_text(), daemon.log_text()

    def call_registry(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.registry.url}/v1{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def routed(self, service: str) -> dict[str, dict[str, Any]]:
        """The gateway's opinion of every instance of the service, by id."""
        status, body = http_get(f"http://127.0.0.1:{self.admin_port}/instances?service={service}")
        return {item["id"]: item for item in json.loads(body)} if status == 200 else {}

    def eligible(self, service: str) -> set[str]:
        return {key for key, item in self.routed(service).items() if item["isEligible"]}

    async def until_eligible(self, service: str, ids: Iterable[str], seconds: float = 15) -> None:
        wanted = set(ids)
        await eventually(
            lambda: self.eligible(service) == wanted, seconds, what=f"{self.kind}: eligible are exactly {wanted}"
        )

    async def until_calm(self) -> None:
        """Everybody is ready and has caught up with the registry."""
        for process in (self.discovery, self.gateway, self.monitor):
            await eventually(lambda process=process: process.is_ready(), 30, what=f"{self.kind}: {process.name} ready")
        await eventually(
            lambda: "stale" not in str(http_get(f"http://127.0.0.1:{self.port}/health/ready")[1]),
            30,
            what=f"{self.kind}: fresh routes",
        )

    def load(self, service: str, **options: Any) -> Load:
        """Few connections with pauses: enough to notice a gap of some milliseconds."""
        return Load(self.port, f"/api/{service}/", **{"connections": 4, "pause_seconds": 0.01, **options})

    async def get(self, service: str, path: str = "/") -> Answer:
        return (await self.ask(f"/api/{service}{path}", 1))[0]

    async def ask(self, path: str, count: int) -> list[Answer]:
        """So many GETs, one after the other on one connection."""
        client = Client(self.port)
        try:
            return [await client.request("GET", path, timeout_seconds=20) for _ in range(count)]
        finally:
            client.close()

    async def until_status(self, service: str, *statuses: int) -> None:
        async def is_so() -> bool:
            return (await self.get(service)).status in statuses

        await eventually(is_so, 10, what=f"{self.kind}: {statuses} for {service}")

    @asynccontextmanager
    async def connect(self, generated: tuple[ModuleType, ModuleType]) -> AsyncIterator["Sdk"]:
        """A client of discovery as an SDK has one."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options) as channel:
            yield Sdk(channel, *generated)


class Sdk:
    """What a service does with discovery, and nothing that it would not do."""

    def __init__(self, channel: grpc.aio.Channel, messages: ModuleType, services: ModuleType) -> None:
        self.pb = messages
        self.stub = services.DiscoveryRegistryStub(channel)

    async def register(self, name: str, instance_id: str, port: int, **fields: Any) -> Any:
        asked = {"address": "127.0.0.1", "metadata": METADATA} | fields
        request = self.pb.RegisterServiceRequest(serviceName=name, serviceId=instance_id, port=port, **asked)
        answer = await self.stub.Register(request, timeout=10)
        assert answer.success, answer.errorMessage
        return answer

    async def beat(self, instance_id: str, status: int = HEALTHY, timeout: float = 10) -> bool:
        request = self.pb.ReportHealthRequest(serviceId=instance_id, status=status, output="heartbeat")
        return bool((await self.stub.ReportHealth(request, timeout=timeout)).success)

    async def deregister(self, instance_id: str) -> bool:
        request = self.pb.DeregisterServiceRequest(serviceId=instance_id)
        return bool((await self.stub.Deregister(request, timeout=10)).removed)

    async def instances(self, name: str) -> dict[str, Any]:
        answer = await self.stub.GetInstances(self.pb.GetInstancesRequest(serviceName=name), timeout=10)
        return {instance.serviceId: instance for instance in answer.instances}

    @asynccontextmanager
    async def beating(self, *ids: str, every_seconds: float = 0.3) -> AsyncIterator["Beats"]:
        """Beat for each of them while the block runs, and never register again: what the unmodified SDKs do."""
        beats = Beats()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for instance_id in ids:
                tasks.create_task(self._beat_for(instance_id, every_seconds, beats, stop))
            try:
                yield beats
            finally:
                stop.set()

    async def _beat_for(self, instance_id: str, every_seconds: float, beats: "Beats", stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            started = loop.time()
            try:
                is_taken = await self.beat(instance_id)
            except grpc.aio.AioRpcError as error:
                beats.failures.append(f"{error.code().name}: {error.details()}")
            else:
                beats.taken += is_taken
                beats.refused += not is_taken
            beats.slowest = max(beats.slowest, loop.time() - started)
            try:
                await asyncio.wait_for(stop.wait(), every_seconds)
            except TimeoutError:
                pass


class Beats:
    """How the beats went."""

    def __init__(self) -> None:
        self.taken = 0
        self.refused = 0
        """Answered with `success=false`."""
        self.failures: list[str] = []
        self.slowest = 0.0

    async def until_taken(self, more: int = 4) -> None:
        enough = self.taken + more
        await eventually(lambda: self.taken >= enough, 30, what="beats are taken again")


class Instance:
    """An HTTP server that names itself in every answer. `is_healthy` decides about its health path alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.is_healthy = True

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        status = 200 if self.is_healthy or request.path != "/health" else 503
        return web.json_response({"path": request.path}, status=status, headers={"X-Instance": self.name})


@asynccontextmanager
async def serving(*names: str) -> AsyncIterator[Mapping[str, Instance]]:
    """Run an instance per name for the length of the block."""
    instances = {name: Instance(name) for name in names}
    runners = []
    try:
        for instance in instances.values():
            runner = web.ServerRunner(web.Server(instance.serve, access_log=None), shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            instance.port = runner.addresses[0][1]
        yield instances
    finally:
        for runner in runners:
            await runner.cleanup()
