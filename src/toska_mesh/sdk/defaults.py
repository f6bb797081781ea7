"""What `serve` and `join` take where nothing is said: the environment, and any free port.

The family's port 8080 is for containers; on one machine it is discovery's own. The mesh is told the real one anyway.
"""

import os
from collections.abc import Mapping
from typing import cast

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.environment import service_options, variables
from toska_mesh.sdk.options import ServiceOptions, UnknownOptionError
from toska_mesh.sdk.overrides import ServiceOverrides

_MOST_NAME_CHARS = 80


def chosen_options(options: ServiceOptions | None, overrides: ServiceOverrides) -> ServiceOptions:
    """`given_options`, with any free port where nobody has said one."""
    if options is None and "port" not in overrides and not _port_is_in(os.environ):
        overrides = {**overrides, "port": 0}
    return given_options(options, overrides)


def given_options(options: ServiceOptions | None, overrides: ServiceOverrides) -> ServiceOptions:
    """`options` as they are, or those of the environment with each of `overrides` in place of one."""
    if options is None:
        return service_options(**overrides)
    # What is not annotated is not checked before it is run.
    if not isinstance(cast(object, options), ServiceOptions):
        raise ConfigError(
            f"options are ServiceOptions, not {options!r} ({type(options).__name__});"
            ' single ones are given by name, as in name="orders"'
        )
    if overrides:
        raise UnknownOptionError(f"options are given, so {', '.join(sorted(overrides))} should be said in them")
    return options


def name_for_people(options: object, overrides: Mapping[str, object], otherwise: str) -> str:
    """The service's name as far as it can be known while the options cannot be had."""
    said = getattr(options, "name", None) or overrides.get("name") or os.environ.get("MESH_SERVICE_NAME", "").strip()
    return (
        said if said and isinstance(said, str) and said.isprintable() and len(said) <= _MOST_NAME_CHARS else otherwise
    )


def _port_is_in(environ: Mapping[str, str]) -> bool:
    variable = next(variable for variable in variables() if variable.option == "port")
    names = {name.lower() for name in (variable.name, *variable.also)}
    # `tcp://…` is a service link that Kubernetes injects, no port.
    return any(name.lower() in names and value.strip() and "://" not in value for name, value in environ.items())
