"""The outbox's file: what is written is there after reopening; a damaged file costs as little as possible."""

import sqlite3
from contextlib import closing

import pytest
from tests.unit.messaging.examples import outgoing

from toska_mesh.errors import ConfigError
from toska_mesh.messaging.store import FILE_NAME, OutboxStore, count_waiting


def test_what_was_applied_is_there_after_reopening(tmp_path):
    first, second = outgoing("a", b'{"n":1}'), outgoing("b", b'{"n":2}')
    with closing(OutboxStore(tmp_path)) as store:
        assert store.apply([first, second], [], now=5.0) == [1, 2]
    with closing(OutboxStore(tmp_path)) as store:
        assert [(entry.seq, entry.lane, entry.created, entry.size_bytes) for entry in store.entries()] == [
            (1, "a", 5.0, 7),
            (2, "b", 5.0, 7),
        ]
        assert [stored.outgoing for stored in store.load([1, 2])] == [first, second]


def test_removing_and_adding_share_one_transaction(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        store.apply([outgoing(), outgoing()], [], now=1.0)
        assert store.apply([outgoing()], [1], now=2.0) == [3]
        assert [entry.seq for entry in store.entries()] == [2, 3]


def test_numbers_are_never_used_again(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        store.apply([outgoing()], [], now=1.0)
        store.apply([], [1], now=1.0)
    with closing(OutboxStore(tmp_path)) as store:
        assert store.apply([outgoing()], [], now=1.0) == [2]


def test_a_failed_write_keeps_nothing_and_the_store_goes_on(tmp_path):
    class Unbindable(bytes):
        """Passes for a body until SQLite asks for it."""

        def __conform__(self, _: object) -> object:
            raise sqlite3.ProgrammingError("disk trouble")

    with closing(OutboxStore(tmp_path)) as store:
        with pytest.raises(sqlite3.Error):
            store.apply([outgoing(), outgoing(body=Unbindable(b"x"))], [], now=1.0)
        assert store.entries() == []
        store.apply([outgoing()], [], now=1.0)
        assert len(store.entries()) == 1


def test_a_full_disk_refuses_and_later_takes_again(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        store.apply([outgoing()], [], now=1.0)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.apply([outgoing(body=b"x" * 100_000)], [], now=1.0)
        store._db.execute("PRAGMA max_page_count = 1000000")
        assert store.apply([outgoing(body=b"{}")], [], now=1.0) == [2]


def test_more_numbers_than_sqlite_takes_at_once_are_loaded(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        seqs = store.apply([outgoing() for _ in range(1201)], [], now=1.0)
        assert [stored.seq for stored in store.load(seqs)] == seqs
        assert store.load([999_999]) == []


def test_a_file_that_is_no_database_is_moved_aside(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"this was never a database " * 100)
    with closing(OutboxStore(tmp_path)) as store:
        assert store.entries() == []
        assert store.moved_aside is not None
        assert store.moved_aside.read_bytes().startswith(b"this was never")
        store.apply([outgoing()], [], now=1.0)
    with closing(OutboxStore(tmp_path)) as store:
        assert store.moved_aside is None
        assert len(store.entries()) == 1


def test_readable_events_of_a_damaged_file_are_carried_over(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        kept = [outgoing("a", b'{"n":%d}' % number) for number in range(3)]
        store.apply([*kept, *(outgoing("b", b'"%s"' % (b"x" * 4000)) for _ in range(50))], [], now=7.0)
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    content[-40_000:-20_000] = b"\xff" * 20_000
    path.write_bytes(content)
    with closing(OutboxStore(tmp_path)) as store:
        assert store.moved_aside is not None
        assert store.moved_aside.stat().st_size == len(content)
        entries = store.entries()
        assert store.salvaged == len(entries) > 3
        assert [stored.outgoing for stored in store.load([entry.seq for entry in entries[:3]])] == kept
        assert entries[0].created == 7.0


def test_a_damaged_row_is_left_out_and_the_others_are_given(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        store.apply([outgoing(), outgoing()], [], now=1.0)
        store._db.execute("UPDATE outbox SET body = x'7b' WHERE seq = 1")  # `{`: no JSON
        assert [stored.seq for stored in store.load([1, 2])] == [2]


def test_a_file_of_a_newer_version_is_left_alone(tmp_path):
    with closing(OutboxStore(tmp_path)):
        pass
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match="format 99, written by a newer version; this one reads up to format 1"):
        OutboxStore(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_file_with_other_columns_is_moved_aside(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.executescript("CREATE TABLE outbox (seq INTEGER PRIMARY KEY, body BLOB); INSERT INTO outbox VALUES (1, 'x')")
    with closing(OutboxStore(tmp_path)) as store:
        assert store.moved_aside is not None
        assert store.entries() == []
        assert store.apply([outgoing()], [], now=1.0) == [1]


def test_an_unusable_folder_is_a_config_error_that_names_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"DISCOVERY_DATA_DIR=.*file"):
        OutboxStore(tmp_path / "file", "DISCOVERY_DATA_DIR")


def test_the_file_is_for_its_owner_only(tmp_path):
    with closing(OutboxStore(tmp_path / "new")):
        assert (tmp_path / "new" / FILE_NAME).stat().st_mode & 0o077 == 0


def test_an_emptied_file_gives_its_space_back(tmp_path):
    with closing(OutboxStore(tmp_path)) as store:
        seqs = store.apply([outgoing(body=b"x" * 1_000_000) for _ in range(20)], [], now=1.0)
        store.apply([], seqs, now=1.0)
        store.shrink()
        assert (tmp_path / FILE_NAME).stat().st_size < 1_000_000


def test_waiting_events_are_counted_without_opening_the_outbox(tmp_path):
    assert count_waiting(tmp_path) == 0
    with closing(OutboxStore(tmp_path)) as store:
        store.apply([outgoing(), outgoing()], [], now=1.0)
    assert count_waiting(tmp_path) == 2
    (tmp_path / FILE_NAME).write_bytes(b"garbage" * 1000)
    assert count_waiting(tmp_path) == 0
