"""Discovery's settings: every environment variable it reads, with unit, default and meaning."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import SecretStr, model_validator

from toska_mesh.model.rules import MIN_SECRET_BYTES, problem_with_secret
from toska_mesh.settings import BrokerSettings, ConsulSettings, setting, state_dir


class DiscoverySettings(ConsulSettings, BrokerSettings):
    env_prefixes: ClassVar[tuple[str, ...]] = ("DISCOVERY_", "MESH_SERVICE_AUTH_")

    host: str = setting("DISCOVERY_HOST", "0.0.0.0", "Address to listen on, for gRPC and HTTP.")
    port: int = setting("DISCOVERY_PORT", 8080, "gRPC port.", ge=1, le=65535)
    http_port: int = setting("DISCOVERY_HTTP_PORT", 5010, "HTTP port: REST, health and metrics.", ge=1, le=65535)
    auth: Literal["off", "optional", "required"] = setting(
        "DISCOVERY_AUTH", "off", "Whether callers must carry a service token; `optional` checks those that are sent."
    )
    auth_secret: SecretStr = setting(
        "MESH_SERVICE_AUTH_SECRET", SecretStr(""), f"Shared HS256 secret of service tokens, ≥ {MIN_SECRET_BYTES} bytes."
    )
    auth_issuer: str = setting("MESH_SERVICE_AUTH_ISSUER", "ToskaMesh.Services", "Issuer that service tokens name.")
    auth_audience: str = setting(
        "MESH_SERVICE_AUTH_AUDIENCE", "ToskaMesh.Services", "Audience that service tokens name."
    )
    data_dir: str = setting(
        "DISCOVERY_DATA_DIR", "", "Folder for the event outbox and registrations; empty = a per-user state folder."
    )
    drain_seconds: float = setting(
        "DISCOVERY_DRAIN_SECONDS", 10.0, "Longest time in seconds for calls in flight after SIGTERM.", ge=0
    )
    max_concurrent_calls: int = setting(
        "DISCOVERY_MAX_CONCURRENT_CALLS", 2000, "gRPC calls in progress; more are refused as RESOURCE_EXHAUSTED.", ge=1
    )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else state_dir("discovery")

    @model_validator(mode="after")
    def _check_discovery(self) -> "DiscoverySettings":
        if self.port == self.http_port:
            raise ValueError(f"DISCOVERY_PORT and DISCOVERY_HTTP_PORT are both {self.port}; they must differ")
        reason = problem_with_secret(self.auth_secret.get_secret_value())
        if self.auth != "off" and reason:
            raise ValueError(
                f"MESH_SERVICE_AUTH_SECRET {reason}, but DISCOVERY_AUTH={self.auth} needs a secret of at least"
                f" {MIN_SECRET_BYTES} bytes, for example from `openssl rand -base64 48`"
            )
        return self
