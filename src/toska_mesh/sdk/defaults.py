"""What `serve` and `join` take where nothing is said: the environment, and any free port.

The family's port 8080 is for containers; on one machine it is discovery's own. The mesh is told the real one anyway.
"""

import os
from collections.abc import Mapping
from typing import Any

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.environment import service_options, variables
from toska_mesh.sdk.options import ServiceOptions, UnknownOptionError


def chosen_options(options: ServiceOptions | None, overrides: Mapping[str, Any]) -> ServiceOptions:
    """`options` as they are, or those of the environment with each of `overrides` in place of one."""
    if options is not None:
        if not isinstance(options, ServiceOptions):
            raise ConfigError(
                f"options are ServiceOptions, not {options!r} ({type(options).__name__});"
                ' single ones are given by name, as in name="orders"'
            )
        if overrides:
            raise UnknownOptionError(f"options are given, so {', '.join(sorted(overrides))} should be said in them")
        return options
    if "port" in overrides or _port_is_in(os.environ):
        return service_options(**overrides)
    return service_options(**{**overrides, "port": 0})


def _port_is_in(environ: Mapping[str, str]) -> bool:
    variable = next(variable for variable in variables() if variable.option == "port")
    names = {name.lower() for name in (variable.name, *variable.also)}
    # `tcp://…` is a service link that Kubernetes injects, no port.
    return any(name.lower() in names and value.strip() and "://" not in value for name, value in environ.items())
