"""For tests of services that live in the mesh: a registry and a fake mesh in the test's own process."""
