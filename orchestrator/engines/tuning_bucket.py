"""Keep a training run's output in a bucket: what was saved is brought back, what is saved is sent.

Put into the container beside ``tuning_entry.py`` and run by the Python there, which has fsspec (a
dependency of ``datasets``) and what it needs for the kind of bucket (s3fs, gcsfs, adlfs).

A trainer writes files of this machine; they are sent while it goes on. Of a checkpoint its
``trainer_state.json`` is sent last, and of a result the claim: what was cut off in between lacks it.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# fsspec is imported in the functions: our own environment need not have it

STATE = "trainer_state.json"
KEPT = 2
"""Checkpoints that are kept there, the latest: as many as the trainer keeps (``save_total_limit``)."""
LOOK_EVERY_S = 2.0


class Unreachable(Exception):
    """The bucket cannot be read or written; says why, without what it was asked with."""


def _why(error: Exception) -> str:
    """Return what went wrong in one line."""
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


class Bucket:
    """A folder of a bucket.

    Args:
        url: Such as ``s3://bucket/folder``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import fsspec  # type: ignore[import-not-found,import-untyped,unused-ignore] # of the trainer's environment

            # listings are asked for anew: other nodes write here too
            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise Unreachable(f"{url} needs a package that is not installed here: {_why(error)}") from None
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{url}: {_why(error)}") from None
        self._root = root.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def names(self, folder: str = "") -> list[str]:
        """Return what lies in a folder and below, by path from it; nothing where there is no folder."""
        at = self._at(folder)
        try:
            self._files.invalidate_cache()
            found = self._files.find(at)
        except FileNotFoundError:
            return []
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be read: {_why(error)}") from None
        return sorted(path.removeprefix(at).lstrip("/") for path in found if path != at)

    def is_file(self) -> bool:
        """Say whether the URL is that of one file."""
        try:
            return bool(self._files.isfile(self._root))
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be read: {_why(error)}") from None

    def read(self, name: str) -> bytes | None:
        """Return a small file's content, None where there is none."""
        try:
            return bytes(self._files.cat_file(self._at(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be read: {_why(error)}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        try:
            self._files.makedirs(self._files._parent(self._at(name)), exist_ok=True)
            self._files.pipe_file(self._at(name), content)
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be written: {_why(error)}") from None

    def send(self, file: Path, name: str) -> None:
        """Send one file."""
        try:
            self._files.makedirs(self._files._parent(self._at(name)), exist_ok=True)
            self._files.put_file(str(file), self._at(name))
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be written: {_why(error)}") from None

    def bring(self, name: str, file: Path) -> None:
        """Bring one file here; what was cut off before does not stand in its place."""
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.part")
        try:
            self._files.get_file(self._at(name), str(draft))
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self._at(name)} cannot be read: {_why(error)}") from None
        draft.replace(file)

    def bring_all(self, target: Path) -> None:
        """Bring everything below here into ``target``, or the one file that this is to it."""
        if self.is_file():
            self.bring("", target)
            return
        names = self.names()
        if not names:
            raise Unreachable(f"{self.url} holds nothing")
        for name in names:
            self.bring(name, target / name)

    def drop(self, folder: str) -> None:
        """Remove a folder; its state goes first, so that nobody takes the rest for whole."""
        try:
            if self._files.exists(self._at(f"{folder}/{STATE}")):
                self._files.rm_file(self._at(f"{folder}/{STATE}"))
            self._files.rm(self._at(folder), recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:  # whatever the kind of bucket raises
            raise Unreachable(f"{self.url} cannot be written: {_why(error)}") from None


def marks(nodes: int) -> set[str]:
    """Return the files by which the other nodes say that they have sent their part of a checkpoint.

    >>> marks(1), marks(2)
    (set(), {'.modelyard-node-1'})
    """
    return {f".modelyard-node-{rank}" for rank in range(1, nodes)}


class Keeper:
    """Brings the last checkpoint here, and sends what the trainer saves.

    Args:
        bucket: Where the output is kept.
        output: The folder the trainer writes to.
        flaw: Says what is torn in a checkpoint folder, None where it is whole.
        tell: Told what was skipped or could not be sent.
        refused: What is raised where the bucket cannot be read or written.
        rank: Which node this is.
        nodes: How many there are.
    """

    def __init__(
        self,
        bucket: Bucket,
        output: Path,
        *,
        flaw: Callable[[Path], str | None],
        tell: Callable[[str], object],
        refused: type[Exception],
        rank: int = 0,
        nodes: int = 1,
    ) -> None:
        self._bucket, self._output = bucket, output
        self._flaw, self._tell, self._refused = flaw, tell, refused
        self._rank, self._nodes = rank, nodes
        self._sent: set[str] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = ""
        self._torn: list[str] = []

    def steps(self) -> list[tuple[int, str]]:
        """Return the checkpoints there that were sent to their end, with their steps, the latest first."""
        with self._refusing():
            return self._steps()

    def _steps(self) -> list[tuple[int, str]]:
        found: dict[str, set[str]] = {}
        for name in self._bucket.names():
            folder, inside, file = name.partition("/")
            if inside and folder.startswith("checkpoint-") and folder.removeprefix("checkpoint-").isdigit():
                found.setdefault(folder, set()).add(file)
        whole = [name for name, files in found.items() if {STATE, *marks(self._nodes)} <= files]
        self._torn = sorted(found.keys() - set(whole))
        return sorted(((int(name.removeprefix("checkpoint-")), name) for name in whole), reverse=True)

    def bring(self) -> None:
        """Bring the last whole checkpoint here, where what is here already is older."""
        here = {path.name for path in self._output.glob("checkpoint-*") if self._flaw(path) is None}
        there = self.steps()
        self._sent |= here & {name for _, name in there}
        for name in self._torn:
            self._tell(f"{name} in {self._bucket.url} is skipped: it was not sent to its end")
        for _, name in there:
            if name in here or self._bring(name):
                return

    def _bring(self, name: str) -> bool:
        """Bring one checkpoint here; False where it is torn."""
        folder = self._output / name
        with self._refusing():
            for file in self._bucket.names(name):
                self._bucket.bring(f"{name}/{file}", folder / file)
        why = self._flaw(folder)
        if why is None:
            self._sent.add(name)
            return True
        self._tell(f"{name} in {self._bucket.url} is skipped: {why}")
        shutil.rmtree(folder)
        return False

    def begin(self) -> None:
        """Send checkpoints as they are saved, until ``finish``."""
        self._thread = threading.Thread(target=self._go_on, name="bucket", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self.send_checkpoints()
                self._failing = ""
            except Unreachable as error:
                if str(error) != self._failing:  # the next look tries again
                    self._tell(str(error))
                self._failing = str(error)

    def finish(self) -> str:
        """Send what is left; return why that could not be done, "" where it was."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.send_checkpoints()
        except Unreachable as error:
            return str(error)
        return ""

    def read(self, name: str) -> dict[str, Any]:
        """Return the object in a file there, an empty one where there is none or it is torn."""
        with self._refusing():
            return _object(self._bucket.read(name) or b"{}")

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write an object to a file there."""
        with self._refusing():
            self._bucket.write(name, _content(value))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            raise self._refused(str(error)) from None

    def send_checkpoints(self) -> None:
        """Send the checkpoints that are whole and not there yet, and drop what is older than those kept."""
        folders = sorted(
            (p for p in self._output.glob("checkpoint-*") if p.name not in self._sent),
            key=lambda p: p.stat().st_mtime,
        )
        for folder in folders:
            if self._flaw(folder) is None and self._send(folder):
                self._sent.add(folder.name)
                if self._rank == 0 and self._steps():  # with several nodes it may not be whole yet
                    self._drop_old()

    def _drop_old(self) -> None:
        """Drop what is older than the checkpoints kept there, what was cut off too."""
        whole = self._steps()
        oldest = min(step for step, _ in whole[:KEPT])
        torn = [(int(name.removeprefix("checkpoint-")), name) for name in self._torn]
        for step, name in (*whole, *torn):
            if step < oldest:
                self._bucket.drop(name)

    def _send(self, folder: Path) -> bool:
        """Send one checkpoint; False where the trainer has removed it meanwhile."""
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != STATE]
        there = set(self._bucket.names(folder.name)) if self._rank else set()
        try:
            for file in files:
                name = file.relative_to(folder).as_posix()
                if name not in there:
                    self._bucket.send(file, f"{folder.name}/{name}")
            if self._rank:
                self._bucket.write(f"{folder.name}/.modelyard-node-{self._rank}", b"")
            else:
                self._bucket.send(folder / STATE, f"{folder.name}/{STATE}")
        except FileNotFoundError:
            return False
        return True

    def send_results(self, last: Mapping[str, Mapping[str, Any]]) -> str:
        """Send what the run leaves, all files but the checkpoints', and then the objects in ``last``.

        Returns:
            Why it could not be done, "" where it was.
        """
        try:
            for file in sorted(self._results()):
                self._bucket.send(file, file.relative_to(self._output).as_posix())
            for name, value in last.items():
                self._bucket.write(name, _content(value))
        except Unreachable as error:
            return str(error)
        return ""

    def bring_results(self) -> None:
        """Bring what a finished run left, where it is not here: to merge it, for example."""
        with self._refusing():
            for name in self._bucket.names():
                is_result = not name.startswith((".", "checkpoint-", "modelyard-output"))
                if is_result and not (self._output / name).exists():
                    self._bucket.bring(name, self._output / name)

    def _results(self) -> Iterator[Path]:
        for file in self._output.rglob("*"):
            top = file.relative_to(self._output).parts[0]
            if file.is_file() and not top.startswith((".", "checkpoint-", "modelyard-output")):
                yield file


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _content(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
