"""Images for tests, built on this machine: no registry is asked.

``busybox()`` is Debian's static busybox with a link for each of its commands; ``python()`` adds
the interpreter that runs the tests, with its standard library and the shared libraries they
need. Both are built once and kept; a change here changes their tag.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

BUSYBOX = Path("/bin/busybox")
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nworker:x:1000:1000:worker:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nworker:x:1000:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
UNUSED = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")
UNUSED_ANYWHERE = frozenset({"__pycache__", "site-packages", "dist-packages"})


def require_engine() -> None:
    """Skip the test where no Docker engine answers; fail it where one is required."""
    reason = _why_no_engine()
    if reason is None:
        return
    if "docker" in os.environ.get("MODELYARD_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def _why_no_engine() -> str | None:
    from backends.docker import Docker

    first = Docker(timeout_s=5.0).check()[0]
    if not first.ok:
        return f"no Docker engine: {first.detail}"
    return None if BUSYBOX.exists() else "no static busybox: apt-get install busybox-static"


def busybox() -> str:
    """Return the name of an image with busybox only."""
    return _built("busybox", _busybox_members)


def python() -> str:
    """Return the name of an image with busybox and this Python; ``python3`` is on its path."""
    return _built("python", _python_members)


@cache
def _built(name: str, members: object) -> str:
    import docker

    identity = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()[:12]
    image = f"modelyard-test-{name}:{identity}"
    with docker.APIClient(version="auto") as client:
        if not client.images(name=image):
            assert callable(members)
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                members(tar)
            client.import_image_from_data(
                packed.getvalue(),
                repository=f"modelyard-test-{name}",
                tag=identity,
                changes=["ENV PATH=/bin", 'CMD ["/bin/sh"]'],
            )
    return image


def _busybox_members(tar: tarfile.TarFile) -> None:
    for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700)):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        tar.addfile(entry)
    for path, text in ACCOUNTS.items():
        entry = tarfile.TarInfo(path)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    tar.add(BUSYBOX, "bin/busybox")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for command in listed.stdout.split():
        if command != "busybox":
            _link(tar, f"bin/{command}", "/bin/busybox")


def _python_members(tar: tarfile.TarFile) -> None:
    _busybox_members(tar)
    interpreter = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    _link(tar, "bin/python3", str(interpreter))
    tar.add(interpreter, str(interpreter).lstrip("/"))
    for path in sorted(library.rglob("*")):
        if not path.is_dir() and not _is_unused(path.relative_to(library)):
            tar.add(path, str(path).lstrip("/"))
    compiled = sorted((library / "lib-dynload").glob("*.so"))
    for shared in sorted(set(_shared_libraries([interpreter, *compiled]))):
        tar.add(shared.resolve(), str(shared).lstrip("/"))


def _is_unused(path: Path) -> bool:
    return (
        path.parts[0] in UNUSED
        or path.parts[0].startswith("config-")
        or not UNUSED_ANYWHERE.isdisjoint(path.parts)
        or path.suffix == ".a"
    )


def _shared_libraries(programs: list[Path]) -> Iterator[Path]:
    """Yield what the dynamic linker would load, itself included."""
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    for word in listed.stdout.split():
        if word.startswith("/") and not word.endswith(":") and ".so" in word:
            yield Path(word)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)
