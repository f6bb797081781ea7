"""Write `docs/configuration.md` from the settings models, or prove with `--check` that it is fresh.

The models are the truth; the page is never edited by hand. The list of daemons is `toska_mesh.cli.daemons`; what
services read is the table of `toska_mesh.sdk.environment`.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from toska_mesh.cli.daemons import DAEMONS, SAMPLE, Daemon
from toska_mesh.sdk import environment
from toska_mesh.settings import BrokerSettings, ConsulSettings, DaemonSettings, variables_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Made by tools/generate_configuration.py from the settings models; do not edit. -->

Every daemon is configured by environment variables alone, read once at the start.

- `toska-gateway --check` (and so on for each daemon) reads and checks every setting, prints each with its origin,
  secrets hidden, and exits; `toska check` does it for all of them. `--help` lists the variables.
- A value that cannot be understood, and an unknown variable under a daemon's prefixes, stops the daemon with exit
  code 2 and a line that names the variable, the value and what would be right. Under `CONSUL_`, `RABBITMQ_` and
  `MESH_SERVICE_AUTH_`, which others read too, that holds for a name that is nearly one of ours (`CONSUL_ADRESS`).
- An empty value means the default. Lists are separated by commas.
- Kubernetes' service links (`GATEWAY_SERVICE_HOST`, `GATEWAY_PORT=tcp://…`) are recognised and passed over.
"""

SERVICES = """\
## Services

What a service that uses the SDK reads. Options written in code count before the environment, the environment before the
defaults. Of several names the first that is set counts; those with `__` are .NET's, in any case, and their times are
written as .NET writes them (`00:00:30`). The daemons' rules hold here too: an unknown variable that begins with
`MESH_` is an error, unless it is a service link of Kubernetes, and so is an unknown `Mesh__Service__…`.
`MESH_SERVICE_METADATA_ZONE=a` registers the metadata `zone`; two underscores are a hyphen
(`MESH_SERVICE_METADATA_TOSKA__RETRIES` is `toska-retries`). `Mesh__Service__Metadata__<key>` keeps its key as it is.
"""


class Row(Protocol):
    """What a line of a table needs to know, of a daemon's setting as of a service's."""

    @property
    def name(self) -> str: ...
    @property
    def also(self) -> tuple[str, ...]: ...
    @property
    def default(self) -> str: ...
    @property
    def expected(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def is_secret(self) -> bool: ...


SHARED = (
    ("Logs", "Every daemon", DaemonSettings),
    ("Registry", "Every daemon but `toska-registry` itself. Names and meanings are Consul's own", ConsulSettings),
    ("Events", "`toska-discovery` and `toska-healthmonitor`", BrokerSettings),
)


def page() -> str:
    """The whole page."""
    return "\n".join(
        [INTRODUCTION, *_daemon_sections(), *_shared_sections(), SERVICES, _table(environment.variables())]
    )


def _daemon_sections() -> Iterator[str]:
    for daemon in (*DAEMONS, SAMPLE):
        yield f"## `{daemon.command}`\n"
        yield f"{daemon.description}\n"
        own = [variable for variable in variables_of(daemon.settings) if variable.name not in _shared_names()]
        yield _table(own)
        yield f"{_also(daemon)}\n"


def _shared_sections() -> Iterator[str]:
    for title, whom, model in SHARED:
        yield f"## {title}\n"
        yield f"{whom}.\n"
        base = {variable.name for variable in variables_of(DaemonSettings)} if model is not DaemonSettings else set()
        yield _table(variable for variable in variables_of(model) if variable.name not in base)


def _shared_names() -> set[str]:
    return {variable.name for _, _, model in SHARED for variable in variables_of(model)}


def _also(daemon: Daemon) -> str:
    titles = [
        f"[{title.lower()}](#{title.lower()})" for title, _, model in SHARED if issubclass(daemon.settings, model)
    ]
    prefixes = ", ".join(f"`{prefix}`" for prefix in daemon.settings.env_prefixes)
    return f"Also: {', '.join(titles)}. Unknown variables that begin with {prefixes} are errors."


def _table(variables: Iterable[Row]) -> str:
    lines = ["| variable | default | expected | meaning |", "|---|---|---|---|"]
    for variable in variables:
        names = "<br>or ".join(f"`{name}`" for name in (variable.name, *variable.also))
        default = f"`{variable.default}`" if variable.default else "empty"
        expected = "a secret text" if variable.is_secret else variable.expected
        cells = (names, default, expected, variable.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is not fresh")
    fresh = page()
    if not parser.parse_args().check:
        PAGE.write_text(fresh)
        return 0
    if not PAGE.exists() or PAGE.read_text() != fresh:
        sys.stderr.write("docs/configuration.md is not fresh, run tools/generate_configuration.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
