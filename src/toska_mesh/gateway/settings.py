"""Every setting of the gateway."""

import ipaddress
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator, model_validator

from toska_mesh.gateway.forwarded import Network
from toska_mesh.settings import CommaList, ConsulSettings, setting

MIN_SECRET_BYTES = 32
"""RFC 7518 section 3.2: an HS256 key is at least as long as the hash output."""

MAX_WORKERS = 256
MAX_SOCKET_PATH_BYTES = 107
"""What fits into `sun_path` with its end mark (unix(7))."""


class GatewaySettings(ConsulSettings):
    """Names and defaults that the mesh family has keep theirs; the rest is ours."""

    env_prefixes = ("GATEWAY_", "JWT_", "DASHBOARD_")

    host: str = setting("GATEWAY_HOST", "0.0.0.0", "Address the public port is bound to.")
    port: int = setting("GATEWAY_PORT", 5000, "Public port.", ge=0, le=65535)
    admin_host: str = setting("GATEWAY_ADMIN_HOST", "127.0.0.1", "Address the admin port is bound to.")
    admin_port: int = setting("GATEWAY_ADMIN_PORT", 9901, "Port of the admin API and `/metrics`.", ge=0, le=65535)
    tls_cert: str = setting("GATEWAY_TLS_CERT", "", "PEM file with the certificate chain; empty = plain HTTP.")
    tls_key: str = setting("GATEWAY_TLS_KEY", "", "PEM file with the certificate's key.")
    tls_client_ca: str = setting(
        "GATEWAY_TLS_CLIENT_CA", "", "PEM file with CAs; set = clients must show a certificate."
    )

    workers: str = setting(
        "GATEWAY_WORKERS", "1", "Processes that share the port: a number, or `auto` for one per core."
    )
    handover_path: str = setting(
        "GATEWAY_HANDOVER_PATH",
        "",
        "Unix socket on which a newly started gateway of the same user takes over from the running one; empty = off.",
    )

    route_prefix: str = setting("GATEWAY_ROUTE_PREFIX", "/api/", "Path before the service name.")
    expose: Literal["mesh", "all"] = setting(
        "GATEWAY_EXPOSE",
        "mesh",
        "`mesh` routes instances that joined the mesh (metadata `scheme`, `health_check_endpoint` or `lb_strategy`); "
        "`all` routes every service but `consul`.",
    )
    route_refresh_seconds: float = setting(
        "GATEWAY_ROUTE_REFRESH_SECONDS",
        30,
        "Longest time between two looks at the registry, in seconds; changes arrive at once, this is the safety net.",
        gt=0,
        le=600,
    )
    snapshot_path: str = setting(
        "GATEWAY_SNAPSHOT_PATH",
        "",
        "File for the last good table, served when the registry is down at start. A table of another registry "
        "(`CONSUL_ADDRESS`, namespace, partition) is ignored.",
    )

    metadata_may_relax: bool = setting(
        "GATEWAY_METADATA_MAY_RELAX",
        False,
        "Instance metadata may also loosen what is set here: longer timeouts, more retries, larger bodies, no token.",
    )

    rate_limit_enabled: bool = setting("GATEWAY_RATE_LIMIT_ENABLED", True, "Limit requests per client address.")
    rate_limit_permits: int = setting("GATEWAY_RATE_LIMIT_PERMITS", 100, "Requests per window and client.", gt=0)
    rate_limit_window_seconds: float = setting("GATEWAY_RATE_LIMIT_WINDOW_SECONDS", 60, "Window in seconds.", gt=0)

    cors_allow_any_origin: bool = setting("GATEWAY_CORS_ALLOW_ANY_ORIGIN", True, "Any web page may read answers.")
    cors_allowed_origins: CommaList = setting(
        "GATEWAY_CORS_ALLOWED_ORIGINS",
        (),
        "Origins that may read answers; a list turns `GATEWAY_CORS_ALLOW_ANY_ORIGIN` off. Both off and empty = none.",
    )

    jwt_secret: SecretStr = setting(
        "JWT_SECRET_KEY", SecretStr(""), "HS256 secret of at least 32 bytes; without any JWT key authentication is off."
    )
    jwt_jwks_url: str = setting("JWT_JWKS_URL", "", "URL of a JSON Web Key Set (RS, ES and EdDSA keys).")
    jwt_public_key_file: str = setting("JWT_PUBLIC_KEY_FILE", "", "PEM file with one public key (RS, ES or EdDSA).")
    jwt_issuer: str = setting("JWT_ISSUER", "ToskaMesh.Gateway", "Required `iss` of a token.")
    jwt_audience: str = setting("JWT_AUDIENCE", "ToskaMesh.Services", "Required `aud` of a token.")

    retry_count: int = setting("GATEWAY_RETRY_COUNT", 3, "Tries after the first one.", ge=0, le=20)
    retry_base_ms: float = setting("GATEWAY_RETRY_BASE_MS", 200, "Wait before the first retry, in milliseconds.", ge=0)
    retry_backoff: float = setting("GATEWAY_RETRY_BACKOFF", 2.0, "Factor from one wait to the next.", ge=1)
    retry_jitter_ms: float = setting("GATEWAY_RETRY_JITTER_MS", 200, "Random addition of up to so many ms.", ge=0)
    breaker_failure_threshold: int = setting(
        "GATEWAY_BREAKER_FAILURE_THRESHOLD", 3, "Failures in a row that open an instance's breaker.", ge=1
    )
    breaker_open_seconds: float = setting(
        "GATEWAY_BREAKER_OPEN_SECONDS", 20, "How long an open breaker rejects, in seconds.", gt=0
    )
    slow_start_seconds: float = setting(
        "GATEWAY_SLOW_START_SECONDS",
        10,
        "A new instance reaches its full share after so many seconds; 0 = at once.",
        ge=0,
    )

    max_request_bytes: int = setting(
        "GATEWAY_MAX_REQUEST_BYTES", 10485760, "Largest request body in bytes; 0 = no limit.", ge=0
    )
    max_header_bytes: int = setting(
        "GATEWAY_MAX_HEADER_BYTES", 65536, "Largest request head in bytes.", ge=1024, le=1048576
    )
    max_headers: int = setting(
        "GATEWAY_MAX_HEADERS", 100, "Most header fields of a request; as many trailer fields.", ge=10, le=10000
    )
    max_connections: int = setting(
        "GATEWAY_MAX_CONNECTIONS",
        20000,
        "Client connections at once, per worker; further ones take the place of idle ones or are refused with 503.",
        ge=1,
    )
    max_connections_per_client: int = setting(
        "GATEWAY_MAX_CONNECTIONS_PER_CLIENT",
        0,
        "How many of them one client address (IPv6: a /64) may hold, except trusted proxies; 0 = a tenth, at least 64.",
        ge=0,
    )
    min_bytes_per_second: int = setting(
        "GATEWAY_MIN_BYTES_PER_SECOND",
        0,
        "A client that sends a body, or takes an answer, more slowly than this for GATEWAY_IDLE_TIMEOUT_SECONDS is cut "
        "off, for example 240; 0 = any that moves may stay.",
        ge=0,
    )
    trusted_proxies: CommaList = setting(
        "GATEWAY_TRUSTED_PROXIES",
        ("127.0.0.0/8", "::1/128"),
        "Networks whose `X-Forwarded-*` and `Forwarded` headers are believed.",
    )
    connect_timeout_seconds: float = setting(
        "GATEWAY_CONNECT_TIMEOUT_SECONDS", 5, "Longest dial to an instance, in seconds.", gt=0
    )
    response_timeout_seconds: float = setting(
        "GATEWAY_RESPONSE_TIMEOUT_SECONDS", 30, "Longest wait of one try for the head of an answer, in seconds.", gt=0
    )
    total_timeout_seconds: float = setting(
        "GATEWAY_TOTAL_TIMEOUT_SECONDS",
        90,
        "Longest wait for the head of an answer, all tries together, in seconds from the end of the request: the try "
        "that is under way ends then too.",
        gt=0,
    )
    idle_timeout_seconds: float = setting(
        "GATEWAY_IDLE_TIMEOUT_SECONDS", 60, "Longest pause of a moving body or tunnel, in seconds.", gt=0
    )
    header_timeout_seconds: float = setting(
        "GATEWAY_HEADER_TIMEOUT_SECONDS", 10, "Longest time for a request's head to arrive, in seconds.", gt=0
    )
    keep_alive_seconds: float = setting(
        "GATEWAY_KEEP_ALIVE_SECONDS", 75, "How long an idle client connection is kept, in seconds.", gt=0
    )
    drain_seconds: float = setting("GATEWAY_DRAIN_SECONDS", 10, "Longest drain after SIGTERM, in seconds.", ge=0)
    access_log: bool = setting("GATEWAY_ACCESS_LOG", True, "One JSON line per request on standard output.")

    upstream_max_idle: int = setting(
        "GATEWAY_UPSTREAM_MAX_IDLE", 512, "Idle connections kept per instance and worker; 0 = none is reused.", ge=0
    )
    upstream_idle_seconds: float = setting(
        "GATEWAY_UPSTREAM_IDLE_SECONDS",
        60,
        "How long an idle connection to an instance is kept, in seconds; best below the instance's own keep-alive.",
        gt=0,
    )
    upstream_ca_file: str = setting(
        "GATEWAY_UPSTREAM_CA_FILE", "", "CA certificates for instances with `scheme=https`; empty = the system's."
    )
    upstream_tls_verify: bool = setting(
        "GATEWAY_UPSTREAM_TLS_VERIFY", True, "Check the certificates of instances with `scheme=https`."
    )

    dashboard_prometheus_url: str = setting("DASHBOARD_PROMETHEUS_URL", "http://localhost:9090", "Prometheus.")
    dashboard_tracing_url: str = setting("DASHBOARD_TRACING_URL", "http://localhost:5004", "Tracing service.")
    dashboard_discovery_url: str = setting(
        "DASHBOARD_DISCOVERY_URL",
        "http://localhost:5010",
        "Not used: the dashboard's services come from the route table. Accepted, so that existing environments start.",
    )
    dashboard_healthmonitor_url: str = setting(
        "DASHBOARD_HEALTHMONITOR_URL", "http://localhost:8081", "Health monitor's status API."
    )
    service_auth_secret: SecretStr = setting(
        "MESH_SERVICE_AUTH_SECRET",
        SecretStr(""),
        "HS256 secret for the service token sent to the tracing service and the health monitor; empty = no token.",
    )

    @field_validator("route_prefix")
    @classmethod
    def _normalise_prefix(cls, value: str) -> str:
        inner = value.strip("/")
        if any(char in value for char in "?#% \t\\") or ".." in value or "//" in inner:
            raise ValueError("the prefix should be a plain path such as /api/")
        return f"/{inner}/" if inner else "/"

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: str) -> str:
        if value != "auto" and not (value.isascii() and value.isdigit() and 1 <= int(value) <= MAX_WORKERS):
            raise ValueError(f"it should be a whole number from 1 to {MAX_WORKERS}, or `auto`")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(f"{item!r} is no network; write CIDRs such as 10.0.0.0/8,::1/128") from None
        return value

    @field_validator("cors_allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"{origin!r} is no origin; write scheme and host such as https://app.example.com")
        return tuple(origin.lower() for origin in value)

    @field_validator(
        "dashboard_prometheus_url", "dashboard_tracing_url", "dashboard_discovery_url", "dashboard_healthmonitor_url"
    )
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("it should be an http:// or https:// URL")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_rules_across(self) -> "GatewaySettings":
        for variable, secret in (
            ("JWT_SECRET_KEY", self.jwt_secret),
            ("MESH_SERVICE_AUTH_SECRET", self.service_auth_secret),
        ):
            length = len(secret.get_secret_value().encode())
            if 0 < length < MIN_SECRET_BYTES:
                raise ValueError(f"{variable} has {length} bytes; an HS256 secret needs at least {MIN_SECRET_BYTES}")
        keys = (self.jwt_secret.get_secret_value(), self.jwt_jwks_url, self.jwt_public_key_file)
        if sum(1 for key in keys if key) > 1:
            raise ValueError("JWT_SECRET_KEY, JWT_JWKS_URL and JWT_PUBLIC_KEY_FILE exclude each other: set one")
        hosts = {self.host, self.admin_host} - {"0.0.0.0", "::"}
        if self.port and self.port == self.admin_port and len(hosts) < 2:
            raise ValueError(f"GATEWAY_PORT and GATEWAY_ADMIN_PORT are both {self.port}; they must differ")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("GATEWAY_TLS_CERT and GATEWAY_TLS_KEY belong together: set both or none")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("GATEWAY_TLS_CLIENT_CA needs GATEWAY_TLS_CERT and GATEWAY_TLS_KEY")
        if self.cors_allowed_origins and self.cors_allow_any_origin and self._says_any_origin:
            raise ValueError(
                "GATEWAY_CORS_ALLOWED_ORIGINS contradicts GATEWAY_CORS_ALLOW_ANY_ORIGIN=true: unset one of them"
            )
        for variable, path in (
            ("GATEWAY_TLS_CERT", self.tls_cert),
            ("GATEWAY_TLS_KEY", self.tls_key),
            ("GATEWAY_TLS_CLIENT_CA", self.tls_client_ca),
            ("GATEWAY_UPSTREAM_CA_FILE", self.upstream_ca_file),
            ("JWT_PUBLIC_KEY_FILE", self.jwt_public_key_file),
        ):
            if path and not os.access(path, os.R_OK):
                raise ValueError(f"{variable}={path!r} cannot be read; it should name a readable file")
        if self.handover_path:
            length = len(os.fsencode(self.handover_path))
            if length > MAX_SOCKET_PATH_BYTES or not Path(self.handover_path).parent.is_dir():
                raise ValueError(
                    f"GATEWAY_HANDOVER_PATH={self.handover_path!r}: it should name a socket in a folder that exists, "
                    f"in at most {MAX_SOCKET_PATH_BYTES} bytes"
                )
        if self.snapshot_path and not Path(self.snapshot_path).parent.is_dir():
            raise ValueError(f"GATEWAY_SNAPSHOT_PATH={self.snapshot_path!r}: the folder does not exist")
        return self

    @property
    def _says_any_origin(self) -> bool:
        return bool({"cors_allow_any_origin", "GATEWAY_CORS_ALLOW_ANY_ORIGIN"} & self.model_fields_set)

    @property
    def is_any_origin_allowed(self) -> bool:
        """A list of origins is an answer by itself; nobody should have to say the same thing in two variables."""
        return self.cors_allow_any_origin and not self.cors_allowed_origins

    @property
    def worker_count(self) -> int:
        """How many processes; `auto` counts the cores that this process may use."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else int(self.workers)

    @property
    def is_auth_on(self) -> bool:
        return bool(self.jwt_secret.get_secret_value() or self.jwt_jwks_url or self.jwt_public_key_file)

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(item, strict=False) for item in self.trusted_proxies)
