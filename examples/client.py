"""Calls `hello` and `adder` through the mesh and says who answered: `python examples/client.py`, beside `toska up`.

Kill an instance while it runs: the calls go on at the others.
"""

import asyncio
import itertools

from toska_mesh.errors import UpstreamError
from toska_mesh.sdk import Client, Mesh


async def told(client: Client, path: str) -> str:
    """One call and its answer, in a line."""
    try:
        answer = await client.get(path)
        text = " ".join((await answer.text()).split())
    except UpstreamError as error:
        return f"no answer: {error}"
    tries = f", in try {answer.attempts}" if answer.attempts > 1 else ""
    return f"{answer.status} from {answer.mesh_instance.id}{tries}: {text}"


async def main() -> None:
    async with Mesh(name="example-client") as mesh:
        hello = mesh.client("hello", timeout_seconds=5)
        adder = mesh.client("adder", timeout_seconds=5)
        for number in itertools.count():
            for line in (await told(hello, "/hello"), await told(adder, f"/add?a={number}&b=1")):
                print(line, flush=True)  # noqa: T201 - this is what it is for
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
