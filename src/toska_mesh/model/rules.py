"""What a name, an id, an address and metadata in the mesh may look like: one set of rules for those who ask and those
who answer.

Discovery refuses what breaks them, and the SDK refuses it before anything is sent, with the same words. Each function
gives the sentence's end ("… is empty; give …") or None when all is well; whoever asks puts the name of the field in
front. Limits of metadata are the registry's (`model.metadata`). Pure.
"""

import ipaddress
import re
from collections.abc import Mapping

from toska_mesh.model import metadata as keys

DEFAULT_INTERVAL_SECONDS = 30
MAX_INTERVAL_SECONDS = 86_400
TTL_GRACE_SECONDS = 5
MIN_TTL_SECONDS = 10
MAX_NAME_CHARS = 128
MAX_ID_CHARS = 255
MAX_OUTPUT_CHARS = 4_000
"""The registry keeps a check's last words; longer ones are cut, they are for people."""

MAX_HOST_CHARS = 253  # RFC 1035 section 2.3.4, written without the trailing dot
MIN_SECRET_BYTES = 32

REGISTRY_OWN_NAME = "consul"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@~+=-]*\Z")
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_PATH = re.compile(r"/[\x21-\x7e]*\Z")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_LOOKS_NUMERIC = re.compile(r"([0-9]+|0[xX][0-9A-Fa-f]*)\Z")
_PLACEHOLDERS = ("change-me", "change_me", "changeme", "replace-me", "replace_me", "placeholder", "your-secret")


def ttl_seconds(interval_seconds: int) -> int:
    """How long a beat keeps an instance alive: the interval (30 s when not said) plus 5 s, at least 10 s."""
    interval = interval_seconds if interval_seconds > 0 else DEFAULT_INTERVAL_SECONDS
    return max(MIN_TTL_SECONDS, interval + TTL_GRACE_SECONDS)


def problem_with_service_name(name: str) -> str | None:
    if not name:
        return "is empty; give the service a name such as `orders`"
    if len(name) > MAX_NAME_CHARS or not _NAME.match(name):
        return (
            f"{shown(name)} is not 1 to {MAX_NAME_CHARS} letters, digits, dots, underscores or hyphens"
            " that begin and end with a letter or digit"
        )
    if name.lower() == REGISTRY_OWN_NAME:
        return f"{name!r} is the registry's own name; choose another"
    return None


def problem_with_instance_id(instance_id: str) -> str | None:
    if not instance_id:
        return "is empty; use the id that Register answered"
    if len(instance_id) > MAX_ID_CHARS or not _ID.match(instance_id):
        return (
            f"{shown(instance_id)} is not 1 to {MAX_ID_CHARS} characters of A-Z a-z 0-9 . _ : @ ~ + = -"
            " that begin with a letter, digit or underscore"
        )
    return None


def problem_with_interval(seconds: int) -> str | None:
    return f"{seconds} is above {MAX_INTERVAL_SECONDS} (a day)" if seconds > MAX_INTERVAL_SECONDS else None


def problem_with_path(path: str) -> str | None:
    """Empty is fine: it means "not said"."""
    # It is written right behind `host:port`: without the slash it could change the host that is asked.
    if path and not _PATH.match(path):
        return f"{shown(path)} is not a path that begins with `/`, such as /health"
    return None


def problem_with_metadata(metadata: Mapping[str, str]) -> str | None:
    """A whole sentence, which names the key."""
    if len(metadata) > keys.MAX_PAIRS:
        return f"metadata has {len(metadata)} pairs; at most {keys.MAX_PAIRS} are possible"
    for key, value in metadata.items():
        if not 0 < len(key) <= keys.MAX_KEY_CHARS or not _KEY.match(key):
            return (
                f"metadata key {shown(key)} is not 1 to {keys.MAX_KEY_CHARS} letters, digits, underscores or hyphens"
                " (dots are not possible)"
            )
        if key.lower().startswith(keys.RESERVED_PREFIX):
            return f"metadata key {key!r} begins with {keys.RESERVED_PREFIX!r}, which is reserved"
        size = len(value.encode())
        if size > keys.MAX_VALUE_CHARS:
            return f"metadata value of {key!r} has {size} bytes; at most {keys.MAX_VALUE_CHARS} are possible"
    scheme = metadata.get(keys.SCHEME, "")
    if scheme and (problem := problem_with_scheme(scheme)):
        return f"metadata {keys.SCHEME} {problem}"
    if problem := problem_with_path(metadata.get(keys.HEALTH_CHECK_ENDPOINT, "")):
        return f"metadata {keys.HEALTH_CHECK_ENDPOINT} {problem}"
    for key in (keys.TCP_PORT, keys.GRPC_PORT):
        text = metadata.get(key, "")
        if text and not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536):
            return f"metadata {key} {shown(text)} is not a port between 1 and 65535"
    return None


def problem_with_scheme(scheme: str) -> str | None:
    if scheme.lower() not in keys.SCHEMES:
        return f"{shown(scheme)} is not one of {', '.join(keys.SCHEMES)}"
    return None


def problem_with_address(address: str) -> str | None:
    """Why `address` cannot be an instance's address. Empty and unspecified ones are fine: discovery replaces them.

    What is refused would let a registration steer the gateway and the health probes to places that are no service:
    link-local addresses (cloud metadata), multicast, and texts that only look like a host.
    """
    host = address.strip()
    ip = parse_ip(host)
    if ip is not None:
        if getattr(ip, "scope_id", None):
            return "has a zone, which means nothing on another machine; use an address without `%`"
        if ip.is_link_local or ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
            return "is a link-local, multicast or broadcast address; use a host name or a unicast address"
        return None
    if not host:
        return None
    labels = host.removesuffix(".").split(".")
    if len(host) > MAX_HOST_CHARS or not all(_LABEL.match(label) for label in labels):
        return "is neither an IP address nor a host name; use for example 10.0.0.7 or orders.internal, without a port"
    if _LOOKS_NUMERIC.match(labels[-1]):
        # WHATWG URL, "ends in a number": many libraries read 127.1 or 0x7f000001 as an IPv4 address.
        return "looks like an IPv4 address but is none; write four decimal numbers"
    return None


def parse_ip(text: str) -> IPAddress | None:
    """The address in `text`, brackets removed and IPv4-mapped IPv6 unwrapped; None when it is none."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def problem_with_secret(secret: str) -> str | None:
    """Why a shared secret is not fit for signing tokens. The secret itself is never shown."""
    if not secret:
        return "is empty"
    if any(word in secret.lower() for word in _PLACEHOLDERS) or len(set(secret)) == 1:
        return "is a placeholder"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"has {len(secret.encode())} bytes"
    return None


def shorten_output(output: str) -> str:
    return output if len(output) <= MAX_OUTPUT_CHARS else output[: MAX_OUTPUT_CHARS - 1] + "…"


def shown(text: str) -> str:
    """A caller's text for a message: quoted, and not longer than a person reads."""
    return repr(text if len(text) <= 80 else text[:79] + "…")


def mask_credentials(url: str) -> str:
    """`amqp://user:secret@host` becomes `amqp://***@host`.

    A password with a slash or an `@` in it breaks the URL, but must not be shown for that: the last `@` counts.
    """
    return re.sub(r"(?<=://).*@", "***@", url, flags=re.DOTALL)
