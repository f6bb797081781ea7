"""The console scripts. The package alone is the SDK; the daemons and the command line need the extra `server`.

Imports stand in the functions on purpose: without the extra they fail, and that is answered with the remedy.
"""

import importlib
import sys
from typing import Never


def toska() -> Never:
    run("toska_mesh.cli.app")


def gateway() -> Never:
    run("toska_mesh.gateway.app")


def discovery() -> Never:
    run("toska_mesh.discovery.app")


def healthmonitor() -> Never:
    run("toska_mesh.healthmonitor.app")


def registry() -> Never:
    run("toska_mesh.registryd.app")


def run(module: str) -> Never:
    """Run `main` of the module; exits with a hint at the extra when something that it needs is not installed."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == __package__:
            raise  # ours to mend, not the user's
        sys.exit(f"{exc.name} is not installed; the daemons and `toska` need: pip install 'toska-mesh[server]'")
    main()
    sys.exit(0)
