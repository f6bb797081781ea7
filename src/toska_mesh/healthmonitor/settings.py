"""The monitor's settings: environment variables, their defaults and what would be wrong about them."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from pydantic import field_validator, model_validator

from toska_mesh.healthmonitor.ledger import LedgerPolicy
from toska_mesh.healthmonitor.monitor import MonitorPolicy
from toska_mesh.healthmonitor.probes import ProbePolicy
from toska_mesh.healthmonitor.verdict import Thresholds
from toska_mesh.settings import BrokerSettings, CommaList, ConsulSettings, setting, state_dir

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NOT_OURS = frozenset(("connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"))


class HealthMonitorSettings(ConsulSettings, BrokerSettings):
    """Everything that can be set. Durations are seconds."""

    env_prefixes: ClassVar[tuple[str, ...]] = ("HEALTHMONITOR_",)

    host: str = setting("HEALTHMONITOR_HOST", "0.0.0.0", "Bind address of the status API, health and metrics.")
    port: int = setting("HEALTHMONITOR_PORT", 8081, "Port of the status API, health and metrics.", ge=1, le=65535)
    probe_interval_seconds: float = setting(
        "HEALTHMONITOR_PROBE_INTERVAL_SECONDS", 30.0, "Seconds between two probes of an instance.", ge=0.1, le=86400
    )
    http_timeout_seconds: float = setting(
        "HEALTHMONITOR_HTTP_TIMEOUT_SECONDS", 5.0, "Seconds until an HTTP probe fails.", gt=0, le=300
    )
    tcp_timeout_seconds: float = setting(
        "HEALTHMONITOR_TCP_TIMEOUT_SECONDS", 3.0, "Seconds until a TCP probe fails.", gt=0, le=300
    )
    grpc_timeout_seconds: float = setting(
        "HEALTHMONITOR_GRPC_TIMEOUT_SECONDS", 5.0, "Seconds until a gRPC probe fails.", gt=0, le=300
    )
    failure_threshold: int = setting(
        "HEALTHMONITOR_FAILURE_THRESHOLD", 3, "Failed probes in a row that make an instance Unhealthy.", ge=1, le=1000
    )
    recovery_threshold: int = setting(
        "HEALTHMONITOR_RECOVERY_THRESHOLD",
        2,
        "Successful probes in a row that make an Unhealthy instance Healthy.",
        ge=1,
        le=1000,
    )
    concurrency: int = setting(
        "HEALTHMONITOR_CONCURRENCY", 256, "Most probes under way at the same time.", ge=1, le=65536
    )
    history_limit: int = setting(
        "HEALTHMONITOR_HISTORY_LIMIT", 20, "Transitions remembered for each instance.", ge=1, le=1000
    )
    http_headers: CommaList = setting(
        "HEALTHMONITOR_HTTP_HEADERS", (), "Headers added to HTTP probes: `Name=Value`, separated by commas."
    )
    allow_link_local: bool = setting(
        "HEALTHMONITOR_ALLOW_LINK_LOCAL",
        False,
        "Probe link-local addresses and cloud metadata services too, which anyone who registers a service could name.",
    )
    tls_ca_file: str = setting(
        "HEALTHMONITOR_TLS_CA_FILE", "", "PEM file of the authorities trusted in TLS probes; empty = the system's."
    )
    tls_verify: bool = setting("HEALTHMONITOR_TLS_VERIFY", True, "Check certificates in HTTPS probes.")
    data_dir: str = setting(
        "HEALTHMONITOR_DATA_DIR", "", "Folder of the event outbox; empty = a per-user state folder."
    )

    @field_validator("http_headers")
    @classmethod
    def _check_headers(cls, items: tuple[str, ...]) -> tuple[str, ...]:
        for item in items:
            name, separator, value = item.partition("=")
            if not separator or not _TOKEN.fullmatch(name.strip()) or not _VALUE.fullmatch(value):
                raise ValueError(f"{item!r} should be a header written as Name=Value")
            if name.strip().lower() in _NOT_OURS:
                raise ValueError(f"{name.strip()} belongs to the connection and cannot be set")
        return items

    @model_validator(mode="after")
    def _check_ca_file(self) -> "HealthMonitorSettings":
        if self.tls_ca_file and not Path(self.tls_ca_file).is_file():
            raise ValueError(f"HEALTHMONITOR_TLS_CA_FILE={self.tls_ca_file!r} is not a file")
        return self

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else state_dir("healthmonitor")

    @property
    def headers(self) -> Mapping[str, str]:
        pairs = (item.partition("=") for item in self.http_headers)
        return MappingProxyType({name.strip(): value.strip() for name, _, value in pairs})

    @property
    def monitor(self) -> MonitorPolicy:
        return MonitorPolicy(self.probe_interval_seconds, self.concurrency)

    @property
    def ledger(self) -> LedgerPolicy:
        return LedgerPolicy(
            interval_seconds=self.probe_interval_seconds,
            thresholds=Thresholds(fall=self.failure_threshold, rise=self.recovery_threshold),
            history_limit=self.history_limit,
            allow_link_local=self.allow_link_local,
        )

    @property
    def probes(self) -> ProbePolicy:
        return ProbePolicy(
            http_timeout_seconds=self.http_timeout_seconds,
            tcp_timeout_seconds=self.tcp_timeout_seconds,
            grpc_timeout_seconds=self.grpc_timeout_seconds,
            headers=self.headers,
            allow_link_local=self.allow_link_local,
            ca_file=self.tls_ca_file,
            verify_tls=self.tls_verify,
        )
