"""The `toska` command: a whole mesh on one machine, and questions to a running one."""

import os
import shutil
import sys
from pathlib import Path

import click
import uvloop

from toska_mesh import __version__
from toska_mesh.admin.process import check_text
from toska_mesh.cli.daemons import DAEMONS
from toska_mesh.cli.plan import Options, make_plan
from toska_mesh.cli.queries import instances, routes
from toska_mesh.cli.registry_address import check_host
from toska_mesh.cli.up import Up, check_ports, data_dir_lock
from toska_mesh.cli.view import View
from toska_mesh.cli.wait import wait_command
from toska_mesh.errors import ConfigError
from toska_mesh.settings import load, state_dir
from toska_mesh.telemetry.lines import LineWriter

_LAST_LINES_SECONDS = 2.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="toska", message="%(prog)s %(version)s")
def main() -> None:
    """Toska Mesh: services register, a gateway routes to the healthy ones.

    `toska up` runs a whole mesh on this machine. The other commands ask a running one.
    """


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"toska {__version__}")


@main.command(short_help="Read and print every daemon's settings.")
def check() -> None:
    """Read every daemon's settings from the environment and print them, or say what is wrong."""
    is_wrong = False
    for daemon in DAEMONS:
        try:
            loaded = load(daemon.settings, os.environ)
        except ConfigError as exc:
            is_wrong = True
            for line in str(exc).splitlines():
                click.echo(f"{daemon.command}: {line}", err=True)
        else:
            click.echo(f"# {daemon.command}\n{check_text(loaded)}\n")
    if is_wrong:
        sys.exit(2)


@main.command()
@click.option("--consul", metavar="URL", default="", help="Use this Consul instead of the embedded registry.")
@click.option("--rabbitmq", metavar="URL", default="", help="Send events to this RabbitMQ (amqp://user:password@host).")
@click.option("--no-samples", is_flag=True, help="Do not run the two instances of the sample service `hello`.")
@click.option(
    "--data-dir",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where registry, outboxes and the gateway's snapshot are kept.  [default: a per-user state folder]",
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="`json` passes the daemons' own lines through.",
)
def up(consul: str, rabbitmq: str, no_samples: bool, data_dir: Path | None, log_format: str) -> None:
    """Run a whole mesh on this machine until Ctrl-C.

    Starts the embedded registry, discovery, the health monitor, the gateway and two instances of a small
    service `hello`; shows their logs, restarts what dies, and says where everything is and what to try.

    Every setting of every daemon is an environment variable; `toska check` lists them. Those that matter most
    here, with their defaults:

    \b
      GATEWAY_PORT 5000, GATEWAY_ADMIN_PORT 9901      the gateway, its admin API and metrics
      DISCOVERY_PORT 8080, DISCOVERY_HTTP_PORT 5010   discovery over gRPC and REST
      HEALTHMONITOR_PORT 8081, REGISTRY_PORT 8500     health monitor, embedded registry
      CONSUL_ADDRESS                                  the same as --consul
      RABBITMQ_URL                                    the same as --rabbitmq
      GATEWAY_HOST=0.0.0.0                            opens the gateway to the network; only this
                                                      machine can reach it otherwise
      GATEWAY_RATE_LIMIT_ENABLED=true                 100 requests a minute and client; off here
                                                      while only this machine reaches it
    """
    try:
        options = Options(data_dir or state_dir("up"), consul, rabbitmq, not no_samples)
        plan = make_plan(options, os.environ)
        if plan.consul is not None:
            uvloop.run(check_host(plan.consul.url, plan.consul.source))
        check_ports(plan.ports, options.data_dir)
        with data_dir_lock(options.data_dir, plan.folders):
            writer = LineWriter(sys.stdout.fileno())
            view = View(
                writer.write,
                plan.names,
                use_colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
                as_json=log_format == "json",
                width=min(100, shutil.get_terminal_size().columns),
            )
            try:
                code = uvloop.run(Up(plan, view).run())
            finally:
                writer.close(_LAST_LINES_SECONDS)
    except ConfigError as exc:
        for line in str(exc).splitlines():
            click.echo(f"toska up: {line}", err=True)
        sys.exit(2)
    sys.exit(code)


main.add_command(routes)
main.add_command(instances)
main.add_command(wait_command)

if __name__ == "__main__":
    main()
