"""A gateway with a registry and breakable instances, as the fault tests need it."""

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

from tests.support.backend import Backend
from tests.support.load import Answer, Client, Load
from tests.support.ports import free_port
from tests.support.process import http_get
from tests.support.servers import DaemonProcess
from tests.support.wait import eventually, eventually_now

META = {"scheme": "http", "health_check_endpoint": "/health"}


class Gateway(DaemonProcess):
    """`toska-gateway` on free ports."""

    def __init__(self, registry_url: str, env: Mapping[str, object]) -> None:
        super().__init__("toska-gateway", {})
        self.port = free_port()
        self.admin_port = free_port()
        self.env = {
            "CONSUL_ADDRESS": registry_url,
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_PORT": str(self.admin_port),
            "GATEWAY_RATE_LIMIT_ENABLED": "false",
            "GATEWAY_DRAIN_SECONDS": "0",
            **{name: str(value) for name, value in env.items()},
        }

    def check_log(self) -> None:
        assert "Traceback" not in self.log_text(), self.log_text()


class Pool:
    """Processes that outlive a test: starting them anew for each would take most of the time.

    Gateways by their settings (tests have services of their own in them), instances under a new name for each test.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._gateways: dict[tuple[object, ...], Gateway] = {}
        self._backends: list[Backend] = []

    def gateway(self, registry_url: str, env: Mapping[str, object]) -> Gateway:
        key = (registry_url, *sorted(env.items()))
        if key not in self._gateways:
            gateway = Gateway(registry_url, env)
            gateway.ready_url = f"http://127.0.0.1:{gateway.port}/health/ready"
            self._stack.callback(gateway.close)
            gateway.start()
            self._gateways[key] = gateway
        return self._gateways[key]

    def backend(self, instance: str) -> Backend:
        if not self._backends:
            backend = Backend(instance)
            self._stack.callback(backend.close)
            backend.start()
            return backend
        backend = self._backends.pop()
        backend.reset(instance)
        return backend

    def give_back(self, backend: Backend) -> None:
        if backend.is_running:
            backend.resume()
            self._backends.append(backend)

    def close(self) -> None:
        gateways = list(self._gateways.values())
        for gateway in gateways:
            assert gateway.stop() == 0, gateway.tail()
            gateway.check_log()
        self._stack.close()


class Mesh:
    """One service on one gateway. The registry is any server with Consul's HTTP API.

    With a pool it uses the pool's processes; a test that does something to the gateway starts it as its own.
    """

    def __init__(self, registry: Any, service: str, pool: Pool | None = None) -> None:
        self.registry = registry
        self.service = service
        self.gateway: Gateway
        self._pool = pool
        self._stack = ExitStack()
        self._is_shared = False
        self._registered: set[str] = set()
        self._own: list[Gateway] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for instance in list(self._registered):
                self.deregister(instance)
            if self._is_shared:
                eventually_now(lambda: not self.instances(), what="the gateway forgets the service")
        except OSError:
            pass  # the test took the registry away
        finally:
            self._stack.close()
        for gateway in self._own:
            gateway.check_log()
            gateway.close()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Ask the registry; gives its JSON answer."""
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        request = urllib.request.Request(f"{self.registry.url}/v1{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def register(self, instance: str, port: int, host: str = "127.0.0.1", **meta: str) -> None:
        self.call(
            "PUT",
            "/agent/service/register",
            {
                "ID": instance,
                "Name": self.service,
                "Address": host,
                "Port": port,
                "Meta": META | meta,
                "Check": {"CheckID": f"service:{instance}", "TTL": "600s", "Status": "passing"},
            },
        )
        self.beat(instance)
        self._registered.add(instance)

    def beat(self, instance: str) -> None:
        """What an instance does all the time; after an outage it brings the check back to passing."""
        self.call("PUT", f"/agent/check/pass/service:{instance}")

    def deregister(self, instance: str) -> None:
        self._registered.discard(instance)
        self.call("PUT", f"/agent/service/deregister/{instance}")

    def backend(self, name: str, *, register: bool = True, **meta: str) -> Backend:
        """Start an instance and register it."""
        instance = f"{self.service}-{name}"
        if self._pool is not None:
            backend = self._pool.backend(instance)
            self._stack.callback(self._pool.give_back, backend)
        else:
            backend = self._stack.enter_context(Backend(instance))
        if register:
            self.register(backend.instance, backend.port, **meta)
        return backend

    def start(self, *, own: bool = False, wait: bool = True, **env: object) -> Gateway:
        """Have a gateway with these settings; `wait` until the routes are there, `own` shares it with no other test."""
        if self._pool is not None and not own and wait:
            self._is_shared = True
            self.gateway = self._pool.gateway(self.registry.url, env)
        else:
            self.gateway = Gateway(self.registry.url, env)
            if wait:
                self.gateway.ready_url = f"http://127.0.0.1:{self.gateway.port}/health/ready"
            self._own.append(self.gateway)
            self._stack.callback(self.gateway.kill)
            self.gateway.start()
        if wait:
            eventually_now(lambda: self._registered <= set(self.instances()), what="the routes are there")
        return self.gateway

    @property
    def port(self) -> int:
        return self.gateway.port

    @property
    def admin_port(self) -> int:
        return self.gateway.admin_port

    @property
    def path(self) -> str:
        return f"/api/{self.service}"

    def load(self, path: str = "/", **options: Any) -> Load:
        return Load(self.port, f"{self.path}{path}", **options)

    async def request(self, method: str, path: str = "/", body: bytes = b"", **options: Any) -> Answer:
        """One request on a connection of its own."""
        client = Client(self.port)
        try:
            return await client.request(method, f"{self.path}{path}", body, **options)
        finally:
            client.close()

    def admin(self, path: str) -> Any:
        status, body = http_get(f"http://127.0.0.1:{self.admin_port}{path}")
        assert status == 200, (status, body)
        return json.loads(body)

    def instances(self) -> dict[str, dict[str, Any]]:
        """The gateway's opinion of every instance, by id."""
        try:
            items = self.admin(f"/instances?service={self.service}")
        except AssertionError:
            return {}
        return {item["id"]: item for item in items}

    def metrics(self) -> dict[str, float]:
        """Samples of this gateway, by their whole name with labels."""
        _, body = http_get(f"http://127.0.0.1:{self.admin_port}/metrics")
        samples = (line.rpartition(" ") for line in body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def ready(self) -> tuple[int, dict[str, Any]]:
        status, body = http_get(f"http://127.0.0.1:{self.port}/health/ready")
        return status, json.loads(body)

    async def until_routed(self, *backends: Backend) -> None:
        """Wait until exactly these instances are eligible."""
        wanted = {backend.instance for backend in backends}
        await eventually(
            lambda: {key for key, item in self.instances().items() if item["isEligible"]} == wanted,
            what=f"exactly {sorted(wanted)} eligible",
        )


async def in_thread(function: Any, *arguments: Any, **options: Any) -> Any:
    """Run something blocking without stopping the load that runs on this loop."""
    return await asyncio.to_thread(function, *arguments, **options)
