"""The virtual clock under the name by which the tests of this repository know it."""

from toska_mesh.testing.clock import VirtualLoop, run_virtual

__all__ = ["VirtualLoop", "run_virtual"]
