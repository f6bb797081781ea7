"""A plain HTTP client for the contract suite, and the form in which two registries' answers can be compared."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

UUID_LENGTH = 36
_VOLATILE = ("CreateIndex", "ModifyIndex", "ID", "ContentHash")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def index(self) -> int:
        return int(self.headers["x-consul-index"])


class Registry:
    """One registry under test: Consul or ours."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.port = int(url.rsplit(":", 1)[1])
        self._local = threading.local()
        self.node = self.get("/v1/agent/self").json["Config"]["NodeName"]

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            raw = response.read()
            return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, raw)
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def put(self, path: str, body: Any = None) -> Answer:
        return self.ask("PUT", path, body)

    def delete(self, path: str) -> Answer:
        return self.ask("DELETE", path)

    def register(self, service: dict[str, Any], query: str = "") -> None:
        """Register and wait until the catalog has it: Consul's agent syncs behind the answer."""
        answer = self.put(f"/v1/agent/service/register{query}", service)
        assert answer.status == 200, answer.text
        name, id_ = service["Name"], service.get("ID", service["Name"])
        wanted = {
            spec.get("CheckID", f"service:{id_}") for spec in [service.get("Check")] if spec and spec.get("TTL") != "0s"
        }

        def is_there() -> bool:
            found = [item for item in self.get(f"/v1/health/service/{name}").json if item["Service"]["ID"] == id_]
            return bool(found) and wanted <= {check["CheckID"] for check in found[0]["Checks"]}

        until(is_there)

    def check_of(self, check_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v1/agent/checks").json[check_id]
        return found

    def session(self, **body: Any) -> str:
        answer = self.put("/v1/session/create", body)
        assert answer.status == 200, answer.text
        return str(answer.json["ID"])

    def settled_index(self, path: str) -> int:
        """The resource's index once the agent has synced what came before."""
        last, since = self.get(path).index, time.monotonic()
        while time.monotonic() - since < 0.1:
            index = self.get(path).index
            if index != last:
                last, since = index, time.monotonic()
            time.sleep(0.03)
        return last

    @contextmanager
    def watching(self, path: str, wait: str = "8s") -> Iterator["Watch"]:
        """A blocking query from the resource's present index, under way when the block begins."""
        watch = Watch(self, path, self.settled_index(path), wait)
        watch.start()
        yield watch
        watch.join(20)


class Watch(threading.Thread):
    def __init__(self, registry: Registry, path: str, index: int, wait: str) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: registry.get(f"{path}{'&' if '?' in path else '?'}index={index}&wait={wait}")
        self.index = index
        self.answer: Answer | None = None
        self.seconds = 0.0

    def start(self) -> None:
        super().start()
        time.sleep(0.1)  # until the query hangs in the server
        assert self.answer is None, "the query did not block"

    def run(self) -> None:
        started = time.monotonic()
        answer = self._ask()
        self.seconds = time.monotonic() - started
        self.answer = answer

    def result(self) -> Answer:
        self.join(20)
        assert self.answer is not None, "the blocking query never came back"
        return self.answer


def until(is_true: Callable[[], bool], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def comparable(value: Any, node: str) -> Any:
    """Without what differs between any two registries: indexes, ids they made up, the node's name and own services."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            if key in _VOLATILE:
                kept[key] = type(item).__name__ if key != "ID" or len(str(item)) == UUID_LENGTH else item
            elif key not in ("consul", "Node") or not isinstance(item, dict | list):
                kept[key] = comparable(item, node)
        return kept
    if isinstance(value, list):
        return [comparable(item, node) for item in value]
    return "NODE" if value == node else value
