"""What `toska up` really starts: `python -m toska_mesh.cli.child toska_mesh.gateway.app` runs the `main` of that
module, tied to the life of its parent.

The parent hands down the reading end of a pipe (`TOSKA_LIFELINE_FD`) and keeps the writing end without ever using it.
When the parent ends, however it ends, the kernel closes the pipe; the thread here wakes up and asks its own process to
stop as SIGTERM would, and ends it hard if that takes too long. A pipe rather than `PR_SET_PDEATHSIG`: it needs no code
between fork and exec (`preexec_fn` may deadlock), works beyond Linux, does not depend on which thread forked, and
leaves the child time to drain.
"""

import importlib
import os
import signal
import sys
import threading

LIFELINE_VARIABLE = "TOSKA_LIFELINE_FD"
GRACE_SECONDS = 20.0
"""From the parent's end until a child that does not stop is ended hard; above the gateway's default drain."""


def main() -> None:
    descriptor = int(os.environ.pop(LIFELINE_VARIABLE))
    os.set_inheritable(descriptor, False)  # a worker process of this child watches its own parent
    threading.Thread(target=_end_with_parent, args=(descriptor,), name="lifeline", daemon=True).start()
    module = sys.argv[1]
    sys.argv[:] = [module]
    importlib.import_module(module).main()


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
