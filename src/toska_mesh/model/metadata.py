"""Metadata keys with a meaning to the mesh, and the limits the registry sets on metadata.

Limits are Consul's (agent/structs: service meta): 64 pairs, keys of up to 128 characters of `[A-Za-z0-9_-]` (so no
dots), values of up to 512 characters, prefix `consul-` reserved.
"""

from collections.abc import Mapping

SCHEME = "scheme"
HTTP_SCHEMES = ("http", "https")
"""What the gateway speaks to an instance; without a scheme it is the first."""
SCHEMES = (*HTTP_SCHEMES, "grpc", "grpcs", "tcp")
"""What an instance may say it speaks: the others are probed and found, not routed."""

HEALTH_CHECK_ENDPOINT = "health_check_endpoint"
TCP_PORT = "tcp_port"
GRPC_PORT = "grpc_port"
LB_STRATEGY = "lb_strategy"
WEIGHT = "weight"
ZONE = "zone"
VERSION = "version"
REGISTERED_AT = "toska-registered-at"
"""RFC 3339 UTC time of the first registration; written by discovery so that it survives a restart."""

OWNER = "toska-owner"
"""Identity of the token that registered the instance, when callers are checked."""

TTL_SECONDS = "toska-ttl-seconds"
"""How long a beat keeps the instance alive."""

BOOKKEEPING = frozenset({REGISTERED_AT, OWNER, TTL_SECONDS})
"""What discovery writes beside a service's own metadata; for its replicas, not shown to anybody."""

DRAINING = "toska-draining"
"""`true` while an instance finishes its last requests: no new ones go to it."""

DRAIN_NOTE = "draining"
"""The same said by a health report: Degraded, with words that begin so. Every control plane of the family can carry it,
and unlike metadata it needs no new registration."""

TIMEOUT_MS = "toska-timeout-ms"
TRY_TIMEOUT_MS = "toska-try-timeout-ms"
RETRIES = "toska-retries"
MAX_REQUEST_BYTES = "toska-max-request-bytes"
RATE_LIMIT = "toska-rate-limit"
AUTH = "toska-auth"
PREFIX = "toska-prefix"
HOST = "toska-host"
PATH = "toska-path"
ROUTE_POLICY = frozenset({TIMEOUT_MS, TRY_TIMEOUT_MS, RETRIES, MAX_REQUEST_BYTES, RATE_LIMIT, AUTH, PREFIX, HOST, PATH})
"""What a service asks of the gateway for its own routes (docs/gateway.md says how each is read)."""

OWN_PREFIX = "toska-"
"""Keys of the mesh that the family does not know."""

MESH_MARKERS = frozenset({SCHEME, HEALTH_CHECK_ENDPOINT, LB_STRATEGY})
"""An instance that carries one of these joined the mesh on purpose; only such ones are routed by default."""

MAX_PAIRS = 64
MAX_KEY_CHARS = 128
MAX_VALUE_CHARS = 512
RESERVED_PREFIX = "consul-"


def own_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the service itself registered: without discovery's bookkeeping."""
    return {key: value for key, value in metadata.items() if key not in BOOKKEEPING}
