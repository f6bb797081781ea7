"""A service as a process of its own: `python -m tests.integration.sdk.app_process <kind>`; all else by MESH_*."""

import sys
import time

from tests.integration.sdk.apps import KINDS, make_app

from toska_mesh.sdk.serving import serve


def main(kind: str) -> None:
    if kind == "slow-start":

        def make() -> object:
            print("starting", flush=True)
            time.sleep(1)
            return make_app("aiohttp")

        serve(make)
        return
    serve(make_app(kind), server=KINDS[kind], checks={"nothing": lambda: True}, drain_seconds=20)


if __name__ == "__main__":
    main(sys.argv[1])
