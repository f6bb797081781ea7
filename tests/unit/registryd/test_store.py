"""What a commit promised is there, whatever moment the process dies at."""

import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.registryd.harness import Disk, add

from toska_mesh.errors import ConfigError
from toska_mesh.registryd.store import INDEX_RESERVE, Store
from toska_mesh.registryd.values import Entry, Session, to_row

KEYS = st.tuples(st.just("kv"), st.text("ab/ä\0", min_size=1, max_size=3))
BATCHES = st.lists(
    st.dictionaries(KEYS, st.one_of(st.none(), st.binary(max_size=8)), max_size=4), min_size=1, max_size=8
)


@settings(max_examples=12)
@given(BATCHES)
def test_a_kill_after_any_commit_leaves_exactly_what_was_committed(
    batches: list[dict[tuple[str, str], bytes | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, crashed = Path(folder) / "home", Path(folder) / "crashed"
        store = Store(home / "db")
        wanted: dict[str, bytes] = {}
        for index, batch in enumerate(batches, 1):
            rows = {key: None if value is None else to_row(Entry(key[1], value)) for key, value in batch.items()}
            store.apply(rows, index)
            for (_, key), value in batch.items():
                wanted.pop(key, None)
                if value is not None:
                    wanted[key] = value
            shutil.copytree(home, crashed)  # what a killed process leaves behind: the database and its log
            again = Store(crashed / "db")
            stored = again.load()
            assert {entry.key: entry.value for entry in stored.entries} == wanted
            assert stored.index == index + INDEX_RESERVE
            again.close(stored.index)
            shutil.rmtree(crashed)
        store.close(len(batches))


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", notes="ä", deregister_after_seconds=60.0)
    state.create_session(Session("s", "n", service_checks=("service:a",)), 0.0)
    state.acquire_key("k", b"\x00\xff", 2**64 - 1, "s", 0.0)
    store = Store(tmp_path / "db")
    store.apply(disk.rows, state.index)
    store.close(state.index)
    again = Store(tmp_path / "db")
    assert again.load() == disk.stored(state.index)
    again.close(1)


def test_the_node_keeps_its_id(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    first = store.node_id
    store.close(1)
    again = Store(tmp_path / "db")
    assert again.node_id == first
    again.close(1)


def test_a_failed_batch_is_not_half_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(sqlite3.Error):
        store.apply({("kv", "a"): b"{}", ("kv", "b"): object()}, 5)  # type: ignore[dict-item]
    store.apply({("kv", "c"): to_row(Entry("c"))}, 6)
    assert [entry.key for entry in store.load().entries] == ["c"]
    store.close(6)


def test_a_second_registry_on_the_folder_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    with pytest.raises(ConfigError, match=r"REGISTRY_DATA_DIR=.* is in use by another registry"):
        Store(tmp_path / "db")
    store.close(1)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"this is not a database, it is a text of some length " * 40)
    with pytest.raises(ConfigError, match="move it away"):
        Store(tmp_path / "db")


@pytest.mark.parametrize(
    ("number", "writer"),
    [(99, "a newer version"), (0, "another program or an older version"), (-1, "another program or an older version")],
)
def test_a_file_of_another_format_is_refused_and_left_alone(tmp_path: Path, number: int, writer: str) -> None:
    Store(tmp_path / "db").close(1)
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute(f"PRAGMA user_version={number}")
    db.close()
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(ConfigError, match=f"format {number}, written by {writer}; this registry reads format 1"):
        Store(tmp_path / "db")
    assert (tmp_path / "db").read_bytes() == before


def test_a_row_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.apply({("service", "x"): b"not json"}, 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        store.load()
    store.close(1)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="REGISTRY_DATA_DIR"):
        Store(tmp_path / "file" / "db")
