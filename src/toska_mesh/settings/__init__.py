"""Shared base of the daemons' settings models: reading, unknown names, origins, hidden secrets."""

from toska_mesh.model.rules import mask_credentials
from toska_mesh.settings.base import (
    CommaList,
    DaemonSettings,
    Loaded,
    Variable,
    load,
    setting,
    show,
    variables_of,
)
from toska_mesh.settings.shared import BrokerSettings, ConsulSettings, state_dir

__all__ = [
    "BrokerSettings",
    "CommaList",
    "ConsulSettings",
    "DaemonSettings",
    "Loaded",
    "Variable",
    "load",
    "mask_credentials",
    "setting",
    "show",
    "state_dir",
    "variables_of",
]
