"""asyncio tricks live here and nowhere else."""

from toska_mesh.aio.background import background_tasks
from toska_mesh.aio.latest import Latest

__all__ = ["Latest", "background_tasks"]
