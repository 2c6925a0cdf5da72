"""``modelyard render``: manifests on stdout or in a file, and what they lack on stderr."""

from __future__ import annotations

from tests.cli.conftest import Cli

HELLO = "type: task\nname: hello\nimage: busybox:1.37\ncommands: [echo hi]\nmax_duration: 1h\n"


def test_the_manifest_is_on_stdout_and_its_gaps_on_stderr(cli: Cli) -> None:
    done = cli("render", "-f", cli.write("hello.yaml", HELLO), "--to", "compose")

    assert done.code == 0
    assert done.out.startswith("services:\n  hello:\n    image: busybox:1.37\n")
    assert ":5:15: compose ends nothing by itself" in done.err


def test_rendering_leaves_no_record(cli: Cli) -> None:
    target = cli.folder / "compose.yaml"

    done = cli("render", "-f", cli.write("hello.yaml", HELLO), "--to", "compose", "-o", str(target))

    assert (done.code, done.out) == (0, "")
    assert target.exists()
    assert not (cli.folder / "state.db").exists()


def test_what_fits_no_machine_ends_with_75(cli: Cli) -> None:
    done = cli("render", "-f", cli.write("hello.yaml", HELLO + "nodes: 2\n"), "--to", "compose")

    assert done.code == 75
