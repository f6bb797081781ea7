"""Cutting a batch of lines into pieces that several processes may write to one pipe."""

import select

import pytest

from toska_mesh.telemetry.lines import _pieces


@pytest.mark.parametrize("size", [10, 1000, 5000], ids=["short lines", "long lines", "lines longer than a write"])
def test_pieces_for_a_shared_pipe_are_whole_lines_and_lose_nothing(size: int) -> None:
    batch = b"".join(b"%d " % number + b"x" * size + b"\n" for number in range(50))
    pieces = list(_pieces(batch))
    assert b"".join(pieces) == batch
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1 for piece in pieces)
