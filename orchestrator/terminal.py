"""This process's own terminal, handed to a program elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO


def keyboard() -> int | None:
    """Return the descriptor of stdin, or None where there is none (closed, or not a file)."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def write(target: BinaryIO, data: bytes) -> None:
    """Show ``data`` at once."""
    target.write(data)
    target.flush()


@contextlib.contextmanager
def raw_terminal(resize: Callable[[int, int], None]) -> Iterator[None]:
    """Hand every key to the other side while inside, and tell it the window's rows and columns."""
    import termios
    import tty

    descriptor = keyboard()
    if descriptor is None or not os.isatty(descriptor):
        yield
        return

    is_telling, is_news = False, False

    def tell(*_: object) -> None:
        """Tell the size; where it changes meanwhile, tell it again, and never from within."""
        nonlocal is_telling, is_news
        is_news = True
        while is_news and not is_telling:
            is_telling, is_news = True, False
            try:
                size = os.get_terminal_size(descriptor)
                resize(size.lines, size.columns)
            finally:
                is_telling = False

    before = termios.tcgetattr(descriptor)
    in_main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    previous = signal.signal(signal.SIGWINCH, tell) if in_main else None
    try:
        tty.setraw(descriptor)
        tell()
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        if in_main:
            signal.signal(signal.SIGWINCH, previous)
