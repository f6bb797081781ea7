"""Stands in for the Docker client where no engine is: a container is this program's process, a volume a folder.

Run as `docker VERB ...` with TOSKA_FAKE_DOCKER naming its state folder. Knows the verbs that the tests' broker uses.
The process in a container speaks the first byte of AMQP and keeps count of its starts in its volume.
"""

import os
import signal
import socket
import sys
from pathlib import Path

STATE = Path(os.environ["TOSKA_FAKE_DOCKER"])


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def run() -> None:
    container = STATE / option("--name")
    if container.exists():
        sys.exit("the name is in use")
    volume = STATE / option("--volume").partition(":")[0]
    starts = int(volume.read_text()) if volume.exists() else 0
    volume.write_text(str(starts + 1))
    container.write_text(str(os.getpid()))

    def end(*_: object) -> None:
        container.unlink()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    host, port, _ = option("--publish").split(":")
    with socket.create_server((host, int(port))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(8)
                connection.sendall(b"\x01")


def main() -> None:
    verb, name = sys.argv[1], sys.argv[-1]
    if verb == "run":
        run()
    elif verb == "volume":
        (STATE / name).unlink(missing_ok=True)
    else:
        pid = int((STATE / name).read_text())
        if verb == "inspect":
            print("true" if b") T " in Path(f"/proc/{pid}/stat").read_bytes() else "false")
        else:
            gentle = signal.SIGTERM if "TERM" in sys.argv else signal.SIGKILL
            os.kill(pid, {"pause": signal.SIGSTOP, "unpause": signal.SIGCONT, "kill": gentle}[verb])


if __name__ == "__main__":
    main()
