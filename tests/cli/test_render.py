"""``modelyard render``: manifests on stdout or in a file, and what they lack on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_kubernetes_gets_objects_and_hears_what_they_take(cli: Cli) -> None:
    secret = HELLO + "env: [TOKEN]\n"

    done = cli("render", "-f", cli.write("hello.yaml", secret), "--to", "kubernetes")

    assert done.code == 0
    assert done.out.startswith("---\napiVersion: batch/v1\nkind: Job\n")
    assert done.err == "hello: Secret 'hello-secrets' holds 'TOKEN': secret TOKEN\n"


def test_kubernetes_is_rendered_as_its_place_is_configured(cli: Cli) -> None:
    config = cli.write(
        "config.yaml", "backends: [{type: kubernetes, name: lab, namespace: ml, queue: team}]\n"
    )

    done = cli("render", "-f", cli.write("hello.yaml", HELLO), "--to", "kubernetes", "--config", str(config))

    assert "namespace: ml\n" in done.out
    assert "kueue.x-k8s.io/queue-name: team\n" in done.out


TWO = """\
backends:
  - {type: kubernetes, name: dev, namespace: dev}
  - {type: kubernetes, name: prod, namespace: live}
"""


def test_a_document_is_rendered_for_the_place_that_it_names(cli: Cli) -> None:
    config = str(cli.write("config.yaml", TWO))
    volume = "---\ntype: volume\nname: data\nbackend: prod\n"
    here = str(cli.write("here.yaml", HELLO.replace("hello", "here") + "backends: [docker]\n"))
    there = str(
        cli.write("there.yaml", HELLO.replace("hello", "there") + "backends: [docker, prod]\n" + volume)
    )

    done = cli("render", "-f", here, "-f", there, "--to", "kubernetes", "--config", config)

    assert re.findall("^  namespace: (.*)$", done.out, re.M) == ["dev", "live", "live"]
    named = cli("render", "rbac", "-f", here, "--backend", "prod", "--config", config)
    assert set(re.findall("^  namespace: (.*)$", named.out, re.M)) == {"live"}
    assert named.err == ""
    assert (
        cli("render", "rbac", "--config", config).err == "rbac: for backend 'dev', --backend names another\n"
    )


def test_a_place_that_is_no_cluster_is_refused(cli: Cli) -> None:
    config = str(cli.write("config.yaml", TWO))

    done = cli("render", "rbac", "--backend", "live", "--config", config)

    assert (done.code, "no backend 'live' of type kubernetes" in done.err) == (64, True)
    assert "one of dev, prod" in done.err


def test_what_objects_do_not_do_by_themselves_is_told(cli: Cli) -> None:
    nightly = cli.write("nightly.yaml", HELLO + 'schedule: {cron: "0 3 * * *"}\n')
    web = "type: service\nname: web\nimage: nginx\nport: 80\nreplicas: 1..4\n"
    web += "scaling: {metric: rps, target: 9}\n"

    done = cli("render", "-f", nightly, "-f", cli.write("web.yaml", web), "--to", "kubernetes")

    once, stays = done.err.splitlines()
    assert once == "hello: its schedule is Modelyard's: these objects run once, when they are applied"
    assert stays.startswith("web: nothing scales these objects, and replicas stay at 1: autoscaler ")


def test_what_bears_the_same_name_is_written_too(cli: Cli) -> None:
    both = HELLO.replace("hello", "rbac") + "---\ntype: volume\nname: rbac\n"
    out = cli.folder / "manifests"

    done = cli("render", "rbac", "-f", cli.write("both.yaml", both), "-o", str(out))

    assert done.code == 0
    kinds = re.findall("^kind: (.*)$", (out / "rbac.yaml").read_text(), re.M)
    assert {"ServiceAccount", "Job", "PersistentVolumeClaim"} <= set(kinds)


def test_two_processes_render_the_same_bytes(tmp_path: Path) -> None:
    spec = Path(__file__).parents[2] / "configs" / "services" / "llama-70b.yaml"
    made = [
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "render", "-f", str(spec), "--to", "kubernetes"],
            env={**os.environ, "PYTHONHASHSEED": seed, "HOME": str(tmp_path), "MODELYARD_CONFIG": ""},
            cwd=Path(__file__).parents[2], capture_output=True, check=True,
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    assert made[0].stdout == made[1].stdout
    assert made[0].stderr == made[1].stderr
    assert b"meta-llama/Llama-3.1-70B-Instruct" in made[0].stdout


def test_roles_are_rendered_without_files_or_beside_them(cli: Cli) -> None:
    done = cli("render", "rbac")

    assert (done.code, done.out.count("kind: Role\n")) == (0, 2)  # one is the binding's
    both = cli("render", "rbac", "-f", cli.write("hello.yaml", HELLO))
    assert (both.code, both.out) == (0, done.out + cli("render", "-f", cli.write("hello.yaml", HELLO), "--to",
                                                       "kubernetes").out)  # fmt: skip


def test_compose_knows_no_roles(cli: Cli) -> None:
    assert cli("render", "rbac", "--to", "compose").code == 64


def test_files_without_a_language_are_a_wrong_command_line(cli: Cli) -> None:
    done = cli("render", "-f", cli.write("hello.yaml", HELLO))

    assert (done.code, "--to kubernetes" in done.err) == (64, True)


def test_render_without_files_is_a_wrong_command_line(cli: Cli) -> None:
    assert cli("render", "--to", "compose").code == 64
