"""Settings of `toska-registry`."""

import ipaddress
from pathlib import Path
from typing import ClassVar

from pydantic import SecretStr

from toska_mesh.settings import DaemonSettings, setting, state_dir


class RegistrySettings(DaemonSettings):
    env_prefixes: ClassVar[tuple[str, ...]] = ("REGISTRY_",)

    host: str = setting(
        "REGISTRY_HOST",
        "127.0.0.1",
        "Bind address; set REGISTRY_TOKEN too when other machines can reach it.",
    )
    port: int = setting("REGISTRY_PORT", 8500, "Port of Consul's HTTP API, health and metrics.", ge=1, le=65535)
    data_dir: str = setting(
        "REGISTRY_DATA_DIR", "", "Folder of the database; empty = `~/.local/state/toska/registry` (XDG state folder)."
    )
    token: SecretStr = setting(
        "REGISTRY_TOKEN", SecretStr(""), "Token that every request must carry; empty = none is asked for."
    )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser() if self.data_dir else state_dir("registry")

    @property
    def advertised_address(self) -> str:
        """The node's address, for services that register without one."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        return "127.0.0.1" if address.is_unspecified else self.host
