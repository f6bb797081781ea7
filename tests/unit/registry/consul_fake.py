"""The part of Consul's HTTP API that the seam uses, in memory, on the test's clock. It can die in several ways.

Answers are shaped as those of Consul 1.8; the contract suite holds the real servers to the same shapes.
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import unquote

from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.registry.consul.client import Answer, SessionLostError

_NO_PARAMS: Mapping[str, str] = {}


class FakeConsul:
    """`ConsulApi`. `state`: `up`, `down` (refuses at once) or `frozen` (never answers)."""

    def __init__(self, latency: float = 0.001, **layout: Any) -> None:
        self.state = "up"
        self.latency = latency
        self.layout = layout
        self.calls: list[tuple[float, str, str, dict[str, str]]] = []
        self.refused_services: set[str] = set()
        self.session_ttls: dict[str, float] = {}
        self._numbers = count(1)
        self.wipe()

    def wipe(self) -> None:
        """Empty, and the index starts over."""
        self.index = 5
        self.table_index = {"checks": 5, "services": 5, "kv": 1}
        self.services: dict[tuple[str, str], dict[str, Any]] = {}
        self.checks: dict[tuple[str, str], dict[str, Any]] = {}
        self.kv: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, str] = {}
        self._changed = asyncio.Event()

    # --- what the outside world does ------------------------------------------------------------------------------

    def register(
        self,
        service: str,
        instance_id: str,
        port: int = 80,
        status: str = "passing",
        *,
        node: str = "n1",
        meta: Mapping[str, str] = _NO_PARAMS,
        check: bool = True,
        output: str = "",
    ) -> None:
        self._bump("services")
        old = self.services.get((node, instance_id), {})
        self.services[node, instance_id] = {
            "ID": instance_id,
            "Service": service,
            "Address": "10.0.0.1",
            "Port": port,
            "Meta": dict(meta),
            "CreateIndex": old.get("CreateIndex", self.index),
            "ModifyIndex": self.index,
        }
        if check:
            self.table_index["checks"] = self.index
            key = (node, f"service:{instance_id}")
            before = self.checks.get(key)
            check_value = self._check(node, service, instance_id, status, output)
            if before is None or {**before, "ModifyIndex": 0} != {**check_value, "ModifyIndex": 0}:
                self.checks[key] = check_value

    def _check(self, node: str, service: str, instance_id: str, status: str, output: str) -> dict[str, Any]:
        old = self.checks.get((node, f"service:{instance_id}"), {})
        return {
            "Node": node,
            "CheckID": f"service:{instance_id}",
            "Status": status,
            "Output": output,
            "ServiceID": instance_id,
            "ServiceName": service,
            "CreateIndex": old.get("CreateIndex", self.index),
            "ModifyIndex": self.index,
        }

    def report(self, instance_id: str, status: str, output: str = "", node: str = "n1") -> None:
        self._bump("checks")
        service = self.services[node, instance_id]["Service"]
        self.checks[node, f"service:{instance_id}"] = self._check(node, service, instance_id, status, output)

    def node_check(self, status: str, output: str = "", node: str = "n1") -> None:
        self._bump("checks")
        self.checks[node, "serfHealth"] = self._check(node, "", "", status, output) | {"CheckID": "serfHealth"}

    def deregister(self, instance_id: str, node: str = "n1") -> None:
        self._bump("services")
        del self.services[node, instance_id]
        if self.checks.pop((node, f"service:{instance_id}"), None):
            self.table_index["checks"] = self.index

    def end_session(self, session: str) -> None:
        self.sessions.pop(session, None)
        for key in [key for key, entry in self.kv.items() if entry.get("Session") == session]:
            del self.kv[key]
        self._bump("kv")

    def _bump(self, table: str) -> None:
        self.index += 1
        self.table_index[table] = self.index
        changed, self._changed = self._changed, asyncio.Event()
        asyncio.get_running_loop().call_soon(changed.set)

    # --- ConsulApi ---------------------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        self.calls.append((loop.time(), method, path, dict(params)))
        ends = loop.time() + (5.0 if limit_seconds is None else limit_seconds)
        try:
            async with asyncio.timeout_at(ends if deadline is None else min(ends, deadline)):
                await asyncio.sleep(self.latency)
                answer = await self._answer(method, unquote(path), params, body)
        except TimeoutError as error:
            raise RegistryUnavailableError("no answer in time") from error
        if answer.status == 404 and not missing_ok:
            raise RegistryError("registry answered 404")
        return answer

    async def _alive(self) -> None:
        if self.state == "frozen":
            await asyncio.Event().wait()
        if self.state == "down":
            raise RegistryUnavailableError("connection refused")

    async def _answer(self, method: str, path: str, params: Mapping[str, str], body: bytes | None) -> Answer:
        await self._alive()
        if method == "GET":
            await self._block(path, params)
            await self._alive()
            return self._get(path, params)
        return self._write(method, path, params, body or b"")

    async def _block(self, path: str, params: Mapping[str, str]) -> None:
        wanted = int(params.get("index", "0"))
        assert params.get("index") != "0", "0 is never a wait index"
        if not wanted:
            return
        try:
            async with asyncio.timeout(float(params["wait"].removesuffix("s"))):
                while self.state == "up" and self._index_of(path) <= wanted:
                    await self._changed.wait()
        except TimeoutError:
            pass
        await self._alive()

    def break_connections(self, state: str) -> None:
        """Enter `state`; whoever waits in a blocking query notices."""
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _index_of(self, path: str) -> int:
        if path.startswith("/v1/kv/"):
            return self.table_index["kv"]
        return self.table_index["checks" if path == "/v1/health/state/any" else "services"]

    def _get(self, path: str, params: Mapping[str, str]) -> Answer:
        index = self._index_of(path)
        match path.removeprefix("/v1/").split("/"):
            case ["status", "leader"]:
                return self._json("127.0.0.1:8300", index)
            case ["health", "state", "any"]:
                return self._json(list(self.checks.values()), index)
            case ["catalog", "services"]:
                return self._json({"consul": []} | {one["Service"]: [] for one in self.services.values()}, index)
            case ["catalog", "nodes"]:
                return self._json([{"Node": node} for node in sorted({key[0] for key in self.services})], index)
            case ["catalog", "node", node]:
                found = {key[1]: value for key, value in self.services.items() if key[0] == node}
                return self._json({"Node": {"Node": node}, "Services": found}, index)
            case ["health", "service", name]:
                if name in self.refused_services:
                    raise RegistryError("registry answered 403: Permission denied")
                return self._json([self._entry(key) for key, one in self.services.items() if one["Service"] == name], 1)
            case ["agent", "self"]:
                return self._json({"Config": {"NodeName": "n1"}}, 1)
            case ["agent", "services"]:
                name = params["filter"].removeprefix('Service == "').removesuffix('"')
                ours = {key[1]: one for key, one in self.agent_services().items() if one["Service"] == name}
                return self._json(ours, 1)
            case ["agent", "checks"]:
                name = params["filter"].removeprefix('ServiceName == "').removesuffix('"')
                found = {key[1]: one for key, one in self.agent_checks().items() if one["ServiceName"] == name}
                return self._json(found, 1)
            case ["agent", "service", instance_id]:
                return self._agent_service(instance_id)
            case ["kv", *parts]:
                return self._kv_get("/".join(parts), params, index)
        raise RegistryError(f"registry answered 404: no such page {path}")

    def _entry(self, key: tuple[str, str]) -> dict[str, Any]:
        node, instance_id = key
        ours = (f"service:{instance_id}", "serfHealth")
        checks = [check for (where, name), check in self.checks.items() if where == node and name in ours]
        return {"Node": {"Node": node, "Address": "127.0.0.1"}, "Service": self.services[key], "Checks": checks}

    def agent_services(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the agent of node `n1` was told; a test may replace it to make the agent know more than its servers."""
        return {key: one for key, one in self.services.items() if key[0] == "n1"}

    def agent_checks(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The same of checks."""
        return {key: one for key, one in self.checks.items() if key[0] == "n1"}

    def _agent_service(self, instance_id: str) -> Answer:
        if not any(key[1] == instance_id for key in self.services):
            raise InstanceNotFoundError(f"unknown service ID: {instance_id}")
        return self._json({"ID": instance_id}, 1)

    def _kv_get(self, prefix: str, params: Mapping[str, str], index: int) -> Answer:
        is_prefix = "recurse" in params or "keys" in params
        found = {
            key: entry for key, entry in self.kv.items() if key == prefix or (is_prefix and key.startswith(prefix))
        }
        if not found:
            return Answer(404, b"", index)
        return self._json(sorted(found) if "keys" in params else list(found.values()), index)

    def _json(self, value: object, index: int) -> Answer:
        return Answer(200, json.dumps(value, **(self.layout or {"separators": (",", ":")})).encode(), index)

    def _write(self, method: str, path: str, params: Mapping[str, str], body: bytes) -> Answer:
        match path.removeprefix("/v1/").split("/"):
            case ["session", "create"]:
                session = f"session-{next(self._numbers)}"
                self.sessions[session] = json.loads(body)["Name"]
                return self._json({"ID": session}, 1)
            case ["session", "renew", session]:
                if session not in self.sessions:
                    raise SessionLostError(f"Session id '{session}' not found")
                return self._json([{"ID": session}], 1)
            case ["session", "destroy", session]:
                self.end_session(session)
                return self._json(True, 1)
            case ["kv", *parts]:
                return self._kv_write(method, "/".join(parts), params, body)
        raise RegistryError(f"registry answered 404: no such page {path}")

    def _kv_write(self, method: str, key: str, params: Mapping[str, str], body: bytes) -> Answer:
        if method == "DELETE":
            if "cas" in params and int(params["cas"]) != self.kv.get(key, {}).get("ModifyIndex"):
                return self._json(False, 1)
            self.kv.pop(key, None)
            self._bump("kv")
            return self._json(True, 1)
        session = params.get("acquire", "")
        if session and session not in self.sessions:
            raise SessionLostError(f'invalid session "{session}"')
        holder = self.kv.get(key, {}).get("Session")
        if session and holder not in (None, session):
            return self._json(False, 1)
        value = base64.b64encode(body).decode()
        old = self.kv.get(key, {})
        if old.get("Value") == value and old.get("Session") == (session or None):
            return self._json(True, 1)  # Consul keeps the index of what is written as it was
        self._bump("kv")
        self.kv[key] = {"Key": key, "Value": value, "Session": session or None, "ModifyIndex": self.index}
        return self._json(True, 1)
