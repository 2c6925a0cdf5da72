"""Rules that speak of several fields at once: each yields what is wrong, and at which path.

A rule names the fields it reads. When one of them cannot be read at all, the rule is passed
over, for it would complain about what its reader did not write.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias, TypeVar

from orchestrator.errors import Position
from orchestrator.frozen import frozen
from orchestrator.spec.forms import shown
from orchestrator.spec.interpolation import refers_to_secret
from orchestrator.spec.models import DevEnvironment, Fleet, Placement, Service, Spec, Task, Work
from orchestrator.spec.parts import Part
from orchestrator.spec.values import plain_path

MAX_REPLICAS = 1000
_NAME = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])"
_TAG, _DIGEST = r"[\w][\w.-]{0,127}", r"[A-Za-z][\w+.-]*:[0-9a-fA-F]{32,}"
_IMAGE = re.compile(rf"(?:{_HOST}(?::[0-9]+)?/)?{_NAME}(?:/{_NAME})*(?::{_TAG})?(?:@{_DIGEST})?", re.ASCII)
"""An image's name: the grammar at the head of ``reference.go`` in github.com/distribution/reference."""
_USER = re.compile(r"[a-z_][a-z0-9_-]*\$?|\d{1,10}", re.ASCII | re.I)


@frozen
class Finding:
    """What a rule found wrong, at a path such as ``replicas`` or ``volumes[1].path``.

    ``of_key`` says that it is the last key of the path that is wrong, whatever its value. ``first`` is the
    path of what was said before and cannot be there as well.
    """

    path: str
    what: str
    fix: str | None = None
    of_key: bool = False
    first: str = ""

    def fix_at(self, at: Callable[[str], Position]) -> str | None:
        """Return what to do, with the place of ``first`` where there is one."""
        return f"{self.fix}; the first is at {at(self.first)}" if self.first else self.fix


Rule: TypeAlias = Callable[..., Iterator[Finding]]
AnySpec = TypeVar("AnySpec", bound=Part)
_rules: list[tuple[type[Part], frozenset[str], Rule]] = []


def _rule(
    kind: type[AnySpec], *reads: str
) -> Callable[[Callable[[AnySpec], Iterator[Finding]]], Callable[[AnySpec], Iterator[Finding]]]:
    def register(rule: Callable[[AnySpec], Iterator[Finding]]) -> Callable[[AnySpec], Iterator[Finding]]:
        _rules.append((kind, frozenset(reads), rule))
        return rule

    return register


def findings(spec: Spec, *, unread: Collection[str] = ()) -> Iterator[Finding]:
    """Yield what the rules find wrong with ``spec``.

    Args:
        spec: A document whose fields are well formed.
        unread: Fields that could not be read; rules about them are passed over.
    """
    for kind, reads, rule in _rules:
        if isinstance(spec, kind) and reads.isdisjoint(unread):
            yield from rule(spec)


# --- all work -------------------------------------------------------------------------------


@_rule(Work, "shell")
def _shell(spec: Work) -> Iterator[Finding]:
    if spec.shell is not None and spec.shell not in ("sh", "bash") and not spec.shell.startswith("/"):
        yield Finding("shell", f"expected sh, bash or a path, got {spec.shell!r}", f"write /bin/{spec.shell}")


@_rule(Work, "user")
def _user(spec: Work) -> Iterator[Finding]:
    parts = (spec.user or "root").split(":")
    if len(parts) > 2 or not all(_USER.fullmatch(part) for part in parts):
        yield Finding("user", f"expected user or user:group, got {spec.user!r}", "for example 1000:1000")


@_rule(Work, "image")
def _image(spec: Work) -> Iterator[Finding]:
    if spec.image is None or _IMAGE.fullmatch(spec.image):
        return
    guess = spec.image.strip().lower()
    fix = f"did you mean {guess!r}?" if _IMAGE.fullmatch(guess) else "for example python:3.12-slim"
    yield Finding("image", f"{shown(spec.image)} is no name of an image", fix)


@_rule(Work, "max_duration")
def _max_duration(spec: Work) -> Iterator[Finding]:
    if spec.max_duration == 0:
        yield Finding("max_duration", "it would be ended before it began", "write 12h, or off for no limit")


@_rule(Work, "resources")
def _resources(spec: Work) -> Iterator[Finding]:
    resources = spec.resources
    if resources.cpu and resources.cpu.count.max == 0:
        yield Finding("resources.cpu", "nothing runs on 0 cores", "write 0.5, or leave it out")
    for key in ("memory", "disk"):
        wanted = getattr(resources, key)
        if wanted and wanted.max == 0:
            yield Finding(f"resources.{key}", f"nothing runs on 0 bytes of {key}", "leave it out")


@_rule(Work, "registry_auth", "image")
def _registry_auth(spec: Work) -> Iterator[Finding]:
    if spec.registry_auth is None:
        return
    engine = getattr(spec, "model", None) or getattr(spec, "train", None)  # brings an image of its own
    if spec.image is None and not engine:
        yield Finding("registry_auth", "registry_auth without an image", "set image")
    if not refers_to_secret(spec.registry_auth.password):
        fix = "keep it with 'modelyard secret set NAME' and write ${{ secrets.NAME }}"
        yield Finding("registry_auth.password", "a password in plain text", fix)


@_rule(Work, "ports")
def _ports(spec: Work) -> Iterator[Finding]:
    for side in ("local_port", "container_port"):
        numbers = [getattr(port, side) for port in spec.ports]
        for index, number in enumerate(numbers):
            if number is not None and number in numbers[:index]:
                yield Finding(f"ports[{index}]", f"{side} {number} is there twice", "keep one of them")


@_rule(Work, "volumes")
def _volumes(spec: Work) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, mount in enumerate(spec.volumes):
        path = plain_path(mount.path)
        if path in first:
            fix, other = "give each its own path", f"volumes[{first[path]}]"
            yield Finding(f"volumes[{index}]", f"two mounts at {path}", fix, first=other)
        first.setdefault(path, index)


@_rule(Work, "env")
def _env(spec: Work) -> Iterator[Finding]:
    for name in spec.env:
        if name.startswith("MODELYARD_"):
            yield Finding(f"env.{name}", f"{name!r} is set by Modelyard itself", "choose another name")


MAX_TAGS = 20
"""Some clouds take 50 of everybody's together, of which Modelyard writes a dozen."""
_TAG_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_TAG_PREFIX = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
_TAG_KEY = re.compile(rf"(?:(?=.{{1,253}}/){_TAG_PREFIX}/)?{_TAG_NAME}", re.ASCII)
_TAG_VALUE = re.compile(rf"(?:{_TAG_NAME})?", re.ASCII)
"""The label syntax of Kubernetes (kubernetes.io/docs, "Labels and Selectors"), which every place takes."""
_TAG_TAKEN = re.compile(r"modelyard.*|(?:.*[.-])?(?:kubernetes|k8s)\.io/.*", re.ASCII | re.I)


@_rule(Placement, "tags")
def _tags(spec: Placement) -> Iterator[Finding]:
    first: dict[str, tuple[str, str]] = {}
    for at, (key, value) in enumerate(spec.tags.items()):
        path = f"tags['{key}']" if re.search(r"[.\[\]]|^$", key) else f"tags.{key}"
        if at == MAX_TAGS:
            yield Finding(path, f"at most {MAX_TAGS} tags, got {len(spec.tags)}", "remove some", of_key=True)
        other, there = first.setdefault(re.sub(r"[^a-z0-9]", "-", key.lower()), (key, path))
        if not _TAG_KEY.fullmatch(key):
            yield Finding(path, f"{shown(key)} is no name of a tag", _TAG_RULE, of_key=True)
        elif _TAG_TAKEN.fullmatch(key):
            whose = "Modelyard's" if key.lower().startswith("modelyard") else "Kubernetes'"
            yield Finding(path, f"{key!r} is {whose} own", "choose another name or prefix", of_key=True)
        elif other != key:
            what = f"{key!r} is the same as {other!r} to clouds with small letters and dashes only"
            yield Finding(path, what, "keep one of them", of_key=True, first=there)
        if not _TAG_VALUE.fullmatch(value):
            yield Finding(path, f"{shown(value)} is no value of a tag", _TAG_VALUE_RULE)


_TAG_CHARACTERS = "at most 63 letters, digits, '-', '_' and '.', a letter or digit at either end"
_TAG_RULE = f"{_TAG_CHARACTERS}; before it perhaps a domain and a slash, as in example.com/team"
_TAG_VALUE_RULE = f"{_TAG_CHARACTERS}, or nothing"


# --- tasks ----------------------------------------------------------------------------------


@_rule(Task, "commands", "image", "train")
def _task_has_work(spec: Task) -> Iterator[Finding]:
    if spec.train is not None and spec.commands:
        yield Finding("commands", "a task has either commands or train", "remove one of them")
    if spec.train is None and not spec.commands and spec.image is None:
        yield Finding("", "a task needs commands, an image or train", "add commands: [...]")


@_rule(Task, "nodes", "train")
def _auto_nodes(spec: Task) -> Iterator[Finding]:
    if spec.nodes == "auto" and spec.train is None:
        yield Finding("nodes", "auto counts nodes from train, which is not there", "write a number")


# --- services -------------------------------------------------------------------------------


@_rule(Service, "model", "port", "commands", "image", "base")
def _service_has_work(spec: Service) -> Iterator[Finding]:
    if spec.model is not None or spec.base is not None:
        return
    if not spec.commands and spec.image is None:
        yield Finding("", "a service needs a model, commands or an image", "add model: ORG/NAME")
    elif spec.port is None:
        yield Finding("", "a service needs the port its program listens on", "add port: 8000")


@_rule(Service, "model", "port", "commands")
def _own_command_has_port(spec: Service) -> Iterator[Finding]:
    if spec.model is not None and spec.commands and spec.port is None:
        yield Finding("commands", "a service with its own commands needs their port", "add port: 8000")


@_rule(Service, "model", "engine", "engine_version", "args", "traffic")
def _engine_has_model(spec: Service) -> Iterator[Finding]:
    if spec.model is None:
        for key in ("engine", "engine_version", "args", "traffic"):
            if getattr(spec, key) != type(spec).model_fields[key].default:
                yield Finding(key, f"{key} without a model", "add model: ORG/NAME, or remove it")


@_rule(Service, "model", "adapters")
def _adapter_names(spec: Service) -> Iterator[Finding]:
    for at, adapters in (
        ("model.adapters", spec.model.adapters if spec.model else ()),
        ("adapters", spec.adapters),
    ):
        names = [adapter.name for adapter in adapters]
        for index, name in enumerate(names):
            if name in names[:index]:
                path = f"{at}[{index}].name"
                yield Finding(path, f"a second adapter called {name!r}", "give each its own name")
            elif spec.model and name == spec.model.id:
                yield Finding(f"{at}[{index}].name", f"{name!r} is the model's own name", "call it otherwise")


BASE_RUNS = (
    "model", "commands", "image", "entrypoint", "setup", "engine", "engine_version", "args", "traffic",
    "port", "ports", "probes", "replicas", "scaling", "resources", "volumes", "files", "repos", "env",
    "rollout", "schedule",
)  # fmt: skip
"""What a service with a base has no use for: what runs is the base's."""


@_rule(Service, "base", "adapters", *BASE_RUNS)
def _based(spec: Service) -> Iterator[Finding]:
    if spec.base is None:
        if spec.adapters:
            yield Finding("adapters", "adapters without a base", "write them under model, or name the base")
        return
    if spec.base == spec.name:
        yield Finding("base", "a service cannot be its own base", "name the one that serves the model")
    if not spec.adapters:
        yield Finding("base", "base without adapters", "add adapters: [{name: NAME, id: ORG/NAME}]")
    for key in BASE_RUNS:
        if getattr(spec, key) != type(spec).model_fields[key].get_default(call_default_factory=True):
            yield Finding(key, f"{key} beside base: what runs is service {spec.base!r}", "say it there")


@_rule(Service, "replicas", "scaling")
def _replicas(spec: Service) -> Iterator[Finding]:
    low, high = spec.replicas.min, spec.replicas.max
    if high is None:
        yield Finding("replicas", "a range of replicas needs an upper end", f"for example {low}..8")
    elif high > MAX_REPLICAS:
        yield Finding("replicas", f"at most {MAX_REPLICAS} replicas, got {high}")
    elif low != high and spec.scaling is None:
        yield Finding(
            "replicas", "a range of replicas needs scaling", "add scaling: {metric: queue, target: 4}"
        )
    elif low == high and spec.scaling is not None:
        yield Finding("scaling", "scaling needs a range of replicas", f"write replicas: 0..{high or 1}")


@_rule(Service, "probes", "model", "port")
def _probes(spec: Service) -> Iterator[Finding]:
    for index, probe in enumerate(spec.probes):
        if probe.type == "token" and spec.model is None:
            what = "a token is asked of a model, and there is none"
            yield Finding(f"probes[{index}].type", what, "write type: http")
        if probe.start_duration == 0:
            what = "nothing answers within 0 s of its start"
            yield Finding(f"probes[{index}].start_duration", what, "write 60s, or leave it out")


@_rule(Service, "rate_limits")
def _rate_limits(spec: Service) -> Iterator[Finding]:
    prefixes = [limit.prefix for limit in spec.rate_limits]
    for index, prefix in enumerate(prefixes):
        if prefix in prefixes[:index]:
            yield Finding(f"rate_limits[{index}]", f"two limits for {prefix}", "keep one of them")


# --- dev environments, fleets ---------------------------------------------------------------


@_rule(DevEnvironment, "entrypoint")
def _no_entrypoint(spec: DevEnvironment) -> Iterator[Finding]:
    if spec.entrypoint is not None:
        yield Finding("entrypoint", "a dev environment keeps its own entrypoint", "use init")


@_rule(Fleet, "nodes", "ssh_config")
def _fleet_source(spec: Fleet) -> Iterator[Finding]:
    if (spec.nodes is None) == (spec.ssh_config is None):
        fix = "write nodes for cloud machines, ssh_config for your own"
        yield Finding("nodes" if spec.nodes else "", "a fleet has either nodes or ssh_config", fix)
    elif spec.nodes and spec.nodes.max is None:
        yield Finding(
            "nodes", "it could rent any number of machines", f"write {spec.nodes.min}..4, for example"
        )


@_rule(Fleet, "ssh_config")
def _ssh_hosts(spec: Fleet) -> Iterator[Finding]:
    if spec.ssh_config is None:
        return
    port = spec.ssh_config.port or 22
    names = [(host.hostname.lower(), host.port or port) for host in spec.ssh_config.hosts]
    if not names:
        yield Finding("ssh_config.hosts", "no hosts", "name at least one")
    for index, name in enumerate(names):
        if name in names[:index]:
            twice = spec.ssh_config.hosts[index].hostname
            yield Finding(f"ssh_config.hosts[{index}]", f"{twice!r} is there twice", "keep one of them")


@_rule(Fleet, "ssh_config")
def _network(spec: Fleet) -> Iterator[Finding]:
    if spec.ssh_config is None or spec.ssh_config.network is None:
        return
    network = spec.ssh_config.network
    try:
        ipaddress.ip_network(network, strict=False)
    except ValueError:
        yield Finding("ssh_config.network", f"expected a network, got {network!r}", "for example 10.0.0.0/24")
