"""Key-value state of a service: one abstraction over Redis, ToskaStore and SQLite. See `docs/key-value.md`."""
