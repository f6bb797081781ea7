"""The options by name, as `serve(app, name="orders", port=0)` takes them, for type checkers and editors.

The values are those of `options`, which alone decide what is possible; a test keeps names and types equal.
"""

from collections.abc import Mapping
from typing import TypedDict

from toska_mesh.sdk.options import ConnectOptions, Provider


class ConnectOverrides(TypedDict, total=False):
    """Each field of ConnectOptions."""

    provider: Provider
    discovery_address: str
    use_tls: bool
    ca_file: str
    client_cert: str
    client_key: str
    consul_address: str
    consul_token: str
    consul_token_file: str
    consul_ca_file: str
    consul_client_cert: str
    consul_client_key: str
    auth_secret: str
    auth_issuer: str
    auth_audience: str
    token_minutes: int
    identity: str
    roles: tuple[str, ...]


class ServiceOverrides(ConnectOverrides, total=False):
    """Each field of ServiceOptions, and of the ConnectOptions in it."""

    name: str
    id: str
    host: str
    port: int
    advertised_address: str
    health_endpoint: str
    health_interval_seconds: float
    health_timeout_seconds: float
    unhealthy_threshold: int
    register: bool
    heartbeat: bool
    wait_for_registration: bool
    scheme: str
    strategy: str
    weight: int
    version: str
    metadata: Mapping[str, str]
    drain_seconds: float
    notice_seconds: float
    connect: ConnectOptions
