"""The lock of the data folder, and what a second `toska up` says of the first one."""

import os
from pathlib import Path

from toska_mesh.cli.up import data_dir_lock, other_mesh


def test_a_running_mesh_is_named_with_its_pid(tmp_path: Path) -> None:
    with data_dir_lock(tmp_path, []):
        assert other_mesh(tmp_path) == f"another `toska up` is running (pid {os.getpid()})"


def test_a_mesh_that_has_ended_is_none(tmp_path: Path) -> None:
    with data_dir_lock(tmp_path, []):
        pass
    assert other_mesh(tmp_path) == ""


def test_a_folder_that_was_never_used_has_none(tmp_path: Path) -> None:
    assert other_mesh(tmp_path / "nothing") == ""
    assert not (tmp_path / "nothing").exists()
