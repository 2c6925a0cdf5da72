"""A terminal that is handed over: what its window's changes do to who is told of them."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios

import pytest

from orchestrator import terminal


def _grow(window: int, rows: int) -> None:
    fcntl.ioctl(window, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))


def test_a_size_that_changes_while_it_is_told_is_told_after_and_not_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A window is drawn larger step by step; what tells it holds a lock, and waited for itself."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(terminal, "keyboard", lambda: theirs)
    begun, told = [], []

    def resize(rows: int, _: int) -> None:
        begun.append(rows)
        if rows == 30:
            _grow(theirs, 40)
            os.kill(os.getpid(), signal.SIGWINCH)
        told.append(rows)

    try:
        _grow(theirs, 24)
        with terminal.raw_terminal(resize):
            _grow(theirs, 30)
            os.kill(os.getpid(), signal.SIGWINCH)
            assert begun == told == [24, 30, 40]
    finally:
        os.close(ours)
        os.close(theirs)
