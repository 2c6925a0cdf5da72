"""Rules over several fields: each is broken once, at its place, and kept once."""

from __future__ import annotations

import pytest

from orchestrator.spec.load import read
from orchestrator.spec.models import TYPES
from orchestrator.spec.notices import notices
from orchestrator.spec.unheeded import UNHEEDED
from tests.spec.texts import place, problem_in, problems_in, service, task

RUN = "type: service\nname: s\ncommands: [a]\nport: 80\n"
FLEET = "type: fleet\nname: f\n"
DEV = "type: dev-environment\nname: d\n"


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("type: task\nname: t\n", (1, 1), "a task needs commands, an image or train"),
        (task("commands: [a]\ntrain: {model: m, dataset: d}"), (4, 11),
         "commands: a task has either commands or train"),
        (task("nodes: auto"), (4, 8), "nodes: auto counts nodes from train, which is not there"),
        ("type: service\nname: s\n", (1, 1), "a service needs a model, commands or an image"),
        ("type: service\nname: s\nimage: x\n", (1, 1), "a service needs the port its program listens on"),
        (service("commands: [a]"), (4, 11), "commands: a service with its own commands needs their port"),
        (RUN + "engine: vllm\n", (5, 9), "engine: engine without a model"),
        (RUN + "args: {a: 1}\n", (5, 7), "args: args without a model"),
        (RUN + "traffic: {concurrency: 3}\n", (5, 10), "traffic: traffic without a model"),
        (service("replicas: 1..4"), (4, 11), "replicas: a range of replicas needs scaling"),
        (service("replicas: 1.."), (4, 11), "replicas: a range of replicas needs an upper end"),
        (service("replicas: 1001"), (4, 11), "replicas: at most 1000 replicas, got 1001"),
        (service("scaling: {metric: rps, target: 1}"), (4, 10), "scaling: scaling needs a range of replicas"),
        (service("rate_limits: [{rps: 1}, {rps: 2}]"), (4, 25), "rate_limits[1]: two limits for /"),
        ("type: service\nname: s\nmodel: {id: a/b, adapters: [{name: x, id: p}, {name: y, id: q}, "
         "{name: x, id: r}]}\n", (3, 72), "model.adapters[2].name: a second adapter called 'x'"),
        ("type: service\nname: s\nmodel: {id: a/b, adapters: [{name: 'x=y', id: p}]}\n", (3, 36),
         "model.adapters[0].name: 'x=y' is no name for an adapter"),
        ("type: service\nname: s\nmodel: {id: a/b, adapters: [{name: a/b, id: p}]}\n", (3, 36),
         "model.adapters[0].name: 'a/b' is the model's own name"),
        (RUN + "adapters: [{name: x, id: p}]\n", (5, 11), "adapters: adapters without a base"),
        ("type: service\nname: s\nbase: s\nadapters: [{name: x, id: p}]\n", (3, 7),
         "base: a service cannot be its own base"),
        ("type: service\nname: s\nbase: b\n", (3, 7), "base: base without adapters"),
        ("type: service\nname: s\nbase: b\nadapters: [{name: x, id: p}]\nreplicas: 2\n", (5, 11),
         "replicas: replicas beside base: what runs is service 'b'"),
        ("type: task\nname: t\nimage: Python:3\n", (3, 8), "image: 'Python:3' is no name of an image"),
        ("type: task\nname: t\nimage: a b\n", (3, 8), "image: 'a b' is no name of an image"),
        ("type: task\nname: t\nimage: a//b\n", (3, 8), "image: 'a//b' is no name of an image"),
        (task("max_duration: 0s"), (4, 15), "max_duration: it would be ended before it began"),
        (task("resources: {cpu: 0}"), (4, 18), "resources.cpu: nothing runs on 0 cores"),
        (task("resources: {memory: 0GB}"), (4, 21), "resources.memory: nothing runs on 0 bytes of memory"),
        (RUN + "probes: [{start_duration: 0s}]\n", (5, 27),
         "probes[0].start_duration: nothing answers within 0 s of its start"),
        (task("shell: zsh"), (4, 8), "shell: expected sh, bash or a path, got 'zsh'"),
        (task("user: a:b:c"), (4, 7), "user: expected user or user:group, got 'a:b:c'"),
        (task("user: a b"), (4, 7), "user: expected user or user:group, got 'a b'"),
        (task("registry_auth: {username: u, password: p}"), (4, 40),
         "registry_auth.password: a password in plain text"),
        ("type: task\nname: t\ncommands: [a]\nregistry_auth: {username: u, password: '${{ secrets.P }}'}\n",
         (4, 16), "registry_auth: registry_auth without an image"),
        (task("ports: [80, 80:81]"), (4, 13), "ports[1]: local_port 80 is there twice"),
        (task("ports: [80:81, '*:81']"), (4, 16), "ports[1]: container_port 81 is there twice"),
        (task("volumes: [a:/x, b:/x]"), (4, 17), "volumes[1]: two mounts at /x"),
        (task("volumes: [a:/x, b:/tmp/../x/]"), (4, 17), "volumes[1]: two mounts at /x"),
        (task("env: {MODELYARD_RANK: 1}"), (4, 23),
         "env.MODELYARD_RANK: 'MODELYARD_RANK' is set by Modelyard itself"),
        (task("tags:\n  a b: x"), (5, 3), "tags.a b: 'a b' is no name of a tag"),
        (task("tags:\n  a: x\n  ex.org/a/b: y"), (6, 3),
         "tags['ex.org/a/b']: 'ex.org/a/b' is no name of a tag"),
        (task("tags:\n  Ex.org/a: y"), (5, 3), "tags['Ex.org/a']: 'Ex.org/a' is no name of a tag"),
        (task(f"tags:\n  {'a' * 64}: y"), (5, 3), f"tags.{'a' * 64}: '{'a' * 57}...' is no name of a tag"),
        (task("tags:\n  '': y"), (5, 3), "tags['']: '' is no name of a tag"),
        (task("tags:\n  a.b/c: x y"), (5, 10), "tags['a.b/c']: 'x y' is no value of a tag"),
        (task("tags: {a: x.}"), (4, 11), "tags.a: 'x.' is no value of a tag"),
        (task("tags: {modelyard.dev/run: x}"), (4, 8),
         "tags['modelyard.dev/run']: 'modelyard.dev/run' is Modelyard's own"),
        (task("tags: {modelyard-run: x}"), (4, 8), "tags.modelyard-run: 'modelyard-run' is Modelyard's own"),
        (service("tags: {app.kubernetes.io/name: x}"), (4, 8),
         "tags['app.kubernetes.io/name']: 'app.kubernetes.io/name' is Kubernetes' own"),
        (DEV + "tags: {kueue.x-k8s.io/queue-name: x}\n", (3, 8),
         "tags['kueue.x-k8s.io/queue-name']: 'kueue.x-k8s.io/queue-name' is Kubernetes' own"),
        (task("tags: {a.b: x, A-b: y}"), (4, 16),
         "tags.A-b: 'A-b' is the same as 'a.b' to clouds with small letters and dashes only"),
        (FLEET + "nodes: 1\ntags: {" + ", ".join(f"t{n}: x" for n in range(21)) + "}\n", (4, 158),
         "tags.t20: at most 20 tags, got 21"),
        (DEV + "entrypoint: a\n", (3, 13), "entrypoint: a dev environment keeps its own entrypoint"),
        (FLEET, (1, 1), "a fleet has either nodes or ssh_config"),
        (FLEET + "nodes: 2\nssh_config: {hosts: [a]}\n", (3, 8),
         "nodes: a fleet has either nodes or ssh_config"),
        (FLEET + "ssh_config: {hosts: []}\n", (3, 21), "ssh_config.hosts: no hosts"),
        (FLEET + "ssh_config: {hosts: [a, b, a]}\n", (3, 28), "ssh_config.hosts[2]: 'a' is there twice"),
        (FLEET + "ssh_config: {hosts: [a], network: x}\n", (3, 35),
         "ssh_config.network: expected a network, got 'x'"),
        (service("probes: [{method: get, body: x}]"), (4, 10), "probes[0]: a get request has no body"),
        (RUN + "probes: [{type: token}]\n", (5, 17),
         "probes[0].type: a token is asked of a model, and there is none"),
        (service("probes: [{type: token, url: /x}]"), (4, 10),
         "probes[0]: a probe for a token writes its own request"),
        (service("probes: [{timeout: 0}]"), (4, 10), "probes[0]: timeout and interval are at least 1s"),
        (service("utilization_policy: {min_gpu_utilization: 5, time_window: 1m}"), (4, 21),
         "utilization_policy: time_window is at least 5m"),
        (service("rate_limits: [{rps: 1, key: {type: header}}]"), (4, 29),
         "rate_limits[0].key: a key of type header names its header, and only that"),
        (task("retry: {on_events: []}"), (4, 8), "retry: on_events is empty"),
    ],
)  # fmt: skip
def test_broken_rules_are_said_at_their_place(text: str, at: tuple[int, int], what: str) -> None:
    problem = problem_in(text)

    assert (place(problem), problem.what) == (at, what)
    assert problem.fix or "at most" in what


@pytest.mark.parametrize(
    "text",
    [
        task(), service(), RUN, DEV, DEV + "ide: vscode\n",
        FLEET + "nodes: 0..2\n", FLEET + "ssh_config: {hosts: [a, {hostname: b}]}\n",
        "type: task\nname: t\ncommands: [a]\n",
        "type: task\nname: t\ntrain: {model: m, dataset: d}\nnodes: auto\n",
        service("commands: [a]\nport: 1"), service("replicas: 0"),
        service("replicas: 0..4\nscaling: {metric: rps, target: 1}"),
        service("rate_limits: [{rps: 1}, {rps: 2, prefix: /a}]"),
        service("probes: [{method: post, body: x}]"),
        task("tags: {team: a, example.com/cost-centre: 42, empty: '', A_b.c-9: X.y_z-1}"),
        task(f"tags: {{{'a' * 63}: {'b' * 63}, mykubernetes.io.org/a: b}}"),
        "type: volume\nname: v\ntags: {of anybody: x y}\n",
        task("shell: /bin/zsh"), task("user: 1000:1000"), task("ports: [80, '*:81']"), task("env: [A=1]"),
        task("registry_auth: {username: u, password: '${{ secrets.P }}'}"),
        "type: service\nname: s\nmodel: m\nregistry_auth: {username: u, password: '${{ secrets.P }}'}\n",
    ],
)  # fmt: skip
def test_rules_that_are_kept_say_nothing(text: str) -> None:
    assert problems_in(text) == ()


def test_a_second_mount_names_the_first() -> None:
    problem = problem_in(task("volumes:\n- a:/x\n- b:/x/\n"))

    assert place(problem) == (6, 3)
    assert (problem.fix or "").startswith("give each its own path; the first is at ")
    assert (problem.fix or "").endswith(":5:3")


def test_every_tag_that_no_place_takes_is_told() -> None:
    found = problems_in(task("tags:\n  a b: x y\n  ok: '`x`'\n  k8s.io/a: z"))

    assert [place(problem) for problem in found] == [(5, 3), (5, 8), (6, 7), (7, 3)]


def test_plain_passwords_are_not_repeated() -> None:
    (problem,) = problems_in(task("registry_auth:\n  username: u\n  password: hunter2"))

    assert "hunter2" not in problem.what + (problem.fix or "")


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "python:3.12-slim",
        "Registry.local:5000/team/app_x:V1",
        "a.b/c__d@sha256:" + "0" * 64,
        "[::1]:80/a",
    ],
)
def test_names_of_images_are_taken_as_registries_take_them(image: str) -> None:
    (document,) = read(f"type: task\nname: t\nimage: '{image}'\n")
    assert document.spec.image == image  # type: ignore[union-attr]  # a task has one


def test_fields_that_do_nothing_here_are_told_at_their_place() -> None:
    text = task("env: [A]\nschedule: {cron: '0 3 * * *'}\nidle_duration: 10m\nvolumes: [a:/a, b:/b]")
    volume = "---\ntype: volume\nname: b\nauto_cleanup_duration: 1d\ntags: {a: b}\n"
    found = notices(read(text + volume))
    assert [(notice.at.line, notice.what.split(":")[1].strip()) for notice in found] == [
        (5, "schedule"), (7, "volume 'a' is declared in none of these files"),
        (11, "auto_cleanup_duration"), (12, "tags"),
    ]  # fmt: skip


def test_every_field_that_does_nothing_is_one() -> None:
    fields = {name for kind in TYPES.values() for name in kind.model_fields}
    assert set(UNHEEDED) <= fields


def test_what_a_model_says_of_serving_is_told_where_it_is_trained() -> None:
    text = task(
        "train: {dataset: d, model: {id: m, revision: main, kv_cache: auto, precision: int4, context: 9}}"
    )

    found = notices(read(text))

    assert [problem.what.split(": ")[1] for problem in found] == [
        "train.model.precision",
        "train.model.context",
    ]
