"""Groups of settings that several daemons carry, as mixins beside `DaemonSettings`."""

import contextlib
import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr, model_validator

from toska_mesh.model.rules import mask_credentials
from toska_mesh.settings.base import DaemonSettings, setting


def _with_scheme(value: object) -> object:
    # CONSUL_HTTP_ADDR is often written without a scheme, as Consul's own tools accept it.
    if isinstance(value, str) and value and "://" not in value:
        return f"http://{value}"
    return value


class ConsulSettings(DaemonSettings):
    """Where the registry is and how to speak to it. Names and meanings are those of Consul's own client."""

    consul_address: Annotated[str, BeforeValidator(_with_scheme)] = setting(
        "CONSUL_ADDRESS",
        "http://localhost:8500",
        "URL of a Consul agent or of `toska-registry`; `user:password@` before the host is sent as basic auth.",
        also=("CONSUL_HTTP_ADDR",),
        holds_credentials=True,
    )
    consul_token: SecretStr = setting("CONSUL_HTTP_TOKEN", SecretStr(""), "ACL token sent to the registry.")
    consul_token_file: str = setting("CONSUL_HTTP_TOKEN_FILE", "", "File that holds the ACL token.")
    consul_http_auth: SecretStr = setting("CONSUL_HTTP_AUTH", SecretStr(""), "HTTP basic auth, as `user:password`.")
    consul_ssl: bool = setting("CONSUL_HTTP_SSL", False, "Speak TLS even if the address says `http`.")
    consul_ssl_verify: bool = setting("CONSUL_HTTP_SSL_VERIFY", True, "Check the registry's certificate.")
    consul_ca_file: str = setting("CONSUL_CACERT", "", "File with CA certificates for the registry.")
    consul_ca_path: str = setting("CONSUL_CAPATH", "", "Folder with CA certificates for the registry.")
    consul_client_cert: str = setting("CONSUL_CLIENT_CERT", "", "Client certificate file for the registry.")
    consul_client_key: str = setting("CONSUL_CLIENT_KEY", "", "Key file of the client certificate.")
    consul_tls_server_name: str = setting("CONSUL_TLS_SERVER_NAME", "", "Server name expected in the certificate.")
    consul_namespace: str = setting("CONSUL_NAMESPACE", "", "Consul Enterprise namespace.")
    consul_partition: str = setting("CONSUL_PARTITION", "", "Consul Enterprise partition.")

    @model_validator(mode="after")
    def _check_consul(self) -> "ConsulSettings":
        if not self.consul_address.startswith(("http://", "https://")):
            shown = mask_credentials(self.consul_address)
            raise ValueError(f"CONSUL_ADDRESS={shown!r} should be an http:// or https:// URL")
        if self._has_credentials_in_address and self.consul_http_auth.get_secret_value():
            raise ValueError("CONSUL_ADDRESS holds a user and CONSUL_HTTP_AUTH is set too: keep one of them")
        if bool(self.consul_client_cert) != bool(self.consul_client_key):
            raise ValueError("CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY belong together: set both or none")
        for variable, path in (
            ("CONSUL_HTTP_TOKEN_FILE", self.consul_token_file),
            ("CONSUL_CACERT", self.consul_ca_file),
            ("CONSUL_CAPATH", self.consul_ca_path),
            ("CONSUL_CLIENT_CERT", self.consul_client_cert),
            ("CONSUL_CLIENT_KEY", self.consul_client_key),
        ):
            if path and not os.access(path, os.R_OK):
                raise ValueError(f"{variable}={path!r} cannot be read; it should name a readable file")
        return self

    @property
    def _has_credentials_in_address(self) -> bool:
        """Raises ValueError for credentials that would be read as something else."""
        netloc = ""
        with contextlib.suppress(ValueError):
            parts = urlsplit(self.consul_address)
            if parts.hostname and (parts.port is None or parts.port > 0):
                netloc = parts.netloc
        if not netloc or "@" in self.consul_address.partition(netloc)[2]:
            raise ValueError(
                f"CONSUL_ADDRESS={mask_credentials(self.consul_address)!r} is not a whole URL; "
                "`/`, `?`, `#` and `@` in a password are written %2F, %3F, %23 and %40"
            )
        return "@" in netloc


class BrokerSettings(DaemonSettings):
    """Where events go."""

    rabbitmq_url: str = setting(
        "RABBITMQ_URL",
        "",
        "AMQP URL of RabbitMQ (`amqp://user:password@host:5672/vhost`); empty = events are only logged.",
        holds_credentials=True,
    )

    @model_validator(mode="after")
    def _check_broker(self) -> "BrokerSettings":
        if self.rabbitmq_url and not self.rabbitmq_url.startswith(("amqp://", "amqps://")):
            raise ValueError("RABBITMQ_URL should begin with amqp:// or amqps://")
        return self


def state_dir(name: str) -> Path:
    """The per-user state folder of one daemon (XDG Base Directory: `$XDG_STATE_HOME`, else `~/.local/state`)."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "toska" / name
