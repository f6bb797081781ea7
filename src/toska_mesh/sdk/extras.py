"""Loading what a service may or may not have installed, when it is needed: with the way out in the error."""

import importlib
from types import ModuleType

from toska_mesh.errors import ConfigError


def load(module: str, needs: str, extra: str) -> ModuleType:
    """The module of ours that imports the package `needs`. Raises ConfigError naming the extra when that is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != needs:
            raise
        raise ConfigError(f"{needs} is not installed; `pip install 'toska-mesh[{extra}]'` brings it") from exc
