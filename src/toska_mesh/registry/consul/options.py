"""How to reach one Consul agent (or `toska-registry`): one value instead of a dozen arguments."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the SDK follows the registry too, and must not need what the daemons' settings are built on
    from toska_mesh.settings import ConsulSettings


@dataclass(frozen=True, slots=True)
class ConsulOptions:
    """Address and credentials. Empty strings mean "not used"; names and meanings are those of Consul's own client."""

    address: str = field(default="http://localhost:8500", repr=False)
    """May hold `user:password@`, percent-encoded (RFC 3986 section 3.2.1)."""
    token: str = field(default="", repr=False)
    token_file: str = ""
    """Read at the start and again whenever the registry answers 403, so that a rotated token is picked up."""
    http_auth: str = field(default="", repr=False)
    """`user:password` for HTTP basic auth; those in the address count when it is empty."""
    use_tls: bool = False
    verify_tls: bool = True
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    namespace: str = ""
    partition: str = ""
    call_seconds: float = 5.0
    """Longest time for one call that is no blocking query: a frozen registry must not hold an RPC for longer."""
    pool_size: int = 32
    """Connections at most. Consul allows 200 per client address (`limits.http_max_conns_per_client`)."""

    @classmethod
    def from_settings(cls, settings: "ConsulSettings") -> "ConsulOptions":
        return cls(
            address=settings.consul_address,
            token=settings.consul_token.get_secret_value(),
            token_file=settings.consul_token_file,
            http_auth=settings.consul_http_auth.get_secret_value(),
            use_tls=settings.consul_ssl,
            verify_tls=settings.consul_ssl_verify,
            ca_file=settings.consul_ca_file,
            ca_path=settings.consul_ca_path,
            client_cert=settings.consul_client_cert,
            client_key=settings.consul_client_key,
            tls_server_name=settings.consul_tls_server_name,
            namespace=settings.consul_namespace,
            partition=settings.consul_partition,
        )
