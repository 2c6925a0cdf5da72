"""Reads dstack's configurations (0.20): runs, fleets and volumes, whose spelling is mostly ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.importers.draft import Draft
from orchestrator.importers.theirs import Keys, Profile, Theirs, environment, meaning, renamed
from orchestrator.spec.interpolation import looks_secret
from orchestrator.spec.tree import Node, Scalar, Value

_PLACEMENT = (
    "backends", "regions", "availability_zones", "instance_types", "reservation", "spot_policy", "retry",
    "max_price", "idle_duration", "tags",
)  # fmt: skip
_RUN = (
    "image", "user", "privileged", "entrypoint", "working_dir", "registry_auth", "shell", "files", "repos",
    "priority", "max_duration", "stop_duration", "utilization_policy", "schedule", "fleets",
)  # fmt: skip
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "task": ("nodes", "ports", "startup_order", "stop_criteria"),
    "service": ("port", "https", "auth", "scaling", "rate_limits", "probes"),
    "dev-environment": ("ide", "version", "inactivity_duration", "ports"),
}
"""What means the same in both (dstack's reference, dstack.yml); sizes and commands are looked at."""

_OF_PROFILE = (
    "backends", "regions", "availability_zones", "instance_types", "reservation", "spot_policy", "retry",
    "max_duration", "stop_duration", "max_price", "idle_duration", "utilization_policy", "startup_order",
    "stop_criteria", "schedule", "fleets", "tags",
)  # fmt: skip
"""What a profile may say of runs (dstack's reference, profiles.yml)."""

_VARIABLES = {
    f"DSTACK_{name}": f"MODELYARD_{name}"
    for name in (
        "NODES_NUM", "NODE_RANK", "NODES_IPS", "MASTER_NODE_IP", "GPUS_NUM", "GPUS_PER_NODE", "RUN_NAME",
    )
}  # fmt: skip
_WHY: Mapping[str, tuple[str, str]] = {
    "nvcc": ("images are not built here", "set image to one with the CUDA compiler"),
    "docker": ("no Docker inside the container", "set privileged and an image such as docker:dind"),
    "gateway": ("the gateway is the server's own", ""),
    "strip_prefix": ("services are told apart by host name", ""),
    "creation_policy": ("machines are found or made, whichever is cheaper", "name fleets to hold to them"),
    "single_branch": ("a clone has what git gives it", ""),
    "home_dir": ("the image's user has its own", ""),
}

_ENV = re.compile(r"\$\{\{\s*env\.(\w+)\s*\}\}")
_DURATIONS = ("max_duration", "stop_duration", "idle_duration", "inactivity_duration")
_BARE = re.compile(r"(?<!\w)(?<!\d\.)(\d+(?:\.\d+)?)(?=\.\.|$)")
"""A number without its unit, alone or as an end of a range."""


def read(roots: tuple[Node, ...], theirs: Theirs) -> None:
    """Add a document of ours for each of dstack's.

    >>> from orchestrator.importers import import_text
    >>> print(import_text("type: volume\\nname: data\\nsize: 100", tool="dstack", file="v.yml").text)
    type: volume
    name: data
    # a number of dstack's is in GB
    size: 100GB
    <BLANKLINE>
    """
    for root in roots:
        keys = theirs.mapping(root, "")
        if keys is None:
            continue
        kind = keys.text("type")
        if kind and kind in _OF_TYPE:
            _run(kind, keys)
        elif kind == "fleet":
            _fleet(keys)
        elif kind == "volume":
            _volume(keys)
        else:
            what = f"no document of type {kind!r} here" if kind else "no type: is it dstack's?"
            theirs.leave_out(root, what, "tasks, services, dev environments, fleets and volumes are imported")


def profile(root: Node, theirs: Theirs, name: str) -> Profile:
    """Return a profile of a ``profiles.yml``: the one of that name, "" for its default one.

    Raises:
        SpecError: it is no file of profiles, or has none that is meant.
    """
    keys = theirs.mapping(root, "")
    found = (
        [one for node in keys.items("profiles") if (one := theirs.mapping(node, "profiles"))] if keys else []
    )
    if not found:
        theirs.refuse(root, "no profiles: is it a profiles.yml of dstack's?")
    names = [one.text("name") or "" for one in found]
    if name:
        meant = [one for one, each in zip(found, names, strict=True) if each == name]
    else:
        meant = [one for one in found if (d := one.take("default")) and meaning(d) is True]
    if not meant:
        what = f"no profile {name!r}" if name else "no profile is the default one"
        theirs.refuse(root, what, f"there is {', '.join(filter(None, names))}")
    (chosen, *_) = meant
    taken = {key: entry for key in _OF_PROFILE if (entry := chosen.entry(key))}
    chosen.ignore("name", "default")
    chosen.leave_rest(_WHY)
    return Profile(chosen.text("name") or "", taken)


def _run(kind: str, keys: Keys) -> None:
    filled = False
    if keys.theirs.profile:
        allowed = (*_RUN, *_PLACEMENT, *_OF_TYPE[kind])
        node, filled = keys.theirs.profile.under(keys.node, [key for key in _OF_PROFILE if key in allowed])
        keys = Keys(keys.theirs, node, keys.path, keys.taken)
    draft = keys.theirs.begin(kind, keys.text("name"), keys.node)
    if filled and keys.theirs.profile:
        draft.remark("name", f"with what dstack's profile {keys.theirs.profile.name!r} says")
    keys.copy(draft, _RUN)
    _registry(draft)
    _image(draft, keys)
    _environment(draft, keys)
    _commands(draft, keys)
    keys.copy(draft, _OF_TYPE[kind])
    if kind == "service":
        _replicas(draft, keys)
        _model(draft, keys)
    _volumes(draft, keys)
    _resources(draft, keys)
    keys.copy(draft, _PLACEMENT)
    for key in _DURATIONS:
        if draft.values.get(key) is False:  # off, to YAML 1.1
            draft.values[key] = "off"
    keys.leave_rest(_WHY)


def _registry(draft: Draft) -> None:
    """Write the secret variables of registry_auth as the secrets they are: values stand in no plan."""
    said = draft.values.get("registry_auth")
    if not isinstance(said, dict):
        return
    for key, value in said.items():
        found = _ENV.fullmatch(value.strip()) if isinstance(value, str) else None
        if found and looks_secret(found[1]):
            said[key] = f"${{{{ secrets.{found[1]} }}}}"
            draft.remark("registry_auth", f"{found[1]} is taken from the environment or the secret store")


def _image(draft: Draft, keys: Keys) -> None:
    """Give the image that dstack chooses itself as far as it can be said without dstack."""
    python = keys.entry("python")
    if python and isinstance(python.node, Scalar):
        draft.put(
            "image", f"python:{python.node.text}", python, "dstack's own image, which also has CUDA and uv"
        )
    elif "image" not in draft.values and "image" not in keys.node.entries:
        draft.remark("name", "dstack chooses the image: name one for places with containers")
    commands = keys.node.entries.get("commands")
    if "image" in draft.values and "entrypoint" not in draft.values and commands and not python:
        draft.put("entrypoint", [], commands, "dstack starts commands without the image's entrypoint")


def _environment(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("env")
    if entry:
        found = environment(
            keys.theirs, entry.node, "env", lambda scalar: _ours(draft, keys.theirs, "env", scalar)
        )
        draft.put("env", found, entry)


def _commands(draft: Draft, keys: Keys) -> None:
    for key in ("setup", "init", "commands"):
        entry = keys.entry(key)
        if entry:
            lines = [_ours(draft, keys.theirs, key, n) for n in keys.items(key) if isinstance(n, Scalar)]
            draft.put(key, list[Value](lines), entry)


def _ours(draft: Draft, theirs: Theirs, key: str, scalar: Scalar) -> str:
    """Return a text with dstack's variables by our names."""
    text, unknown = renamed(scalar.text, _VARIABLES, "DSTACK_")
    if text != scalar.text:
        draft.remark(key, "dstack's DSTACK_ variables are MODELYARD_ here")
    for name in unknown:
        theirs.leave_out(scalar, f"{key}: {name} is not set here", "use the MODELYARD_ variables")
    return text


def _replicas(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("replicas")
    if entry and isinstance(meaning(entry.node), list):
        keys.leave_out("replicas", "groups of replicas", "write one service for each group")
    elif entry:
        draft.put("replicas", meaning(entry.node), entry)


def _model(draft: Draft, keys: Keys) -> None:
    """Carry the model's name over where commands serve it: alone it would choose the engine here."""
    entry = keys.entry("model")
    if entry is None:
        return
    if "commands" not in draft.values:
        fix = "leave image out to have the model sized and served by an engine"
        keys.leave_out("model", "it names an endpoint there, and what the engine serves here", fix)
        return
    long = None if isinstance(entry.node, Scalar) else keys.mapping("model")
    name = long.text("name") if long else meaning(entry.node)
    draft.put("model", name, entry)
    if long:
        long.ignore("type")
        if long.text("format") == "openai":
            long.ignore("prefix")
        else:
            long.leave_out("format", "requests are passed on as they are")
        long.leave_rest()


def _volumes(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("volumes")
    if entry is None:
        return
    mounts: list[Value] = []
    for node in keys.items("volumes"):
        mount = meaning(node)
        if isinstance(mount, dict) and isinstance(mount.get("name"), list):
            names = mount["name"]
            assert isinstance(names, list)
            mount["name"] = names[0] if names else None
            keys.theirs.leave_out(node, "volumes: only the first of several names is carried over")
        mounts.append(mount)
    draft.put("volumes", mounts, entry)


def _resources(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("resources")
    if entry is None:
        return
    plain = meaning(entry.node)
    if isinstance(plain, dict):
        _in_gigabytes(draft, "resources", plain, ("memory", "disk", "shm_size"))
        gpu = plain.get("gpu")
        if isinstance(gpu, dict):
            _in_gigabytes(draft, "resources", gpu, ("memory", "total_memory"))
    draft.put("resources", plain, entry)


def _in_gigabytes(draft: Draft, key: str, sizes: dict[str, Value], names: tuple[str, ...]) -> None:
    """Write the unit behind numbers that dstack takes for gigabytes."""
    for name in names:
        size = sizes.get(name)
        if isinstance(size, dict) and set(size) == {"size"}:
            size = size["size"]
        if isinstance(size, int | float | str) and _BARE.search(text := str(size)):
            sizes[name] = _BARE.sub(r"\1GB", text)
            draft.remark(key, "a number of dstack's is in GB")


def _fleet(keys: Keys) -> None:
    draft = keys.theirs.begin("fleet", keys.text("name"), keys.node)
    keys.copy(draft, ("nodes", "ssh_config", "placement", "blocks"))
    _environment(draft, keys)
    _resources(draft, keys)
    keys.copy(draft, _PLACEMENT)
    keys.leave_rest(_WHY)


def _volume(keys: Keys) -> None:
    draft = keys.theirs.begin("volume", keys.text("name"), keys.node)
    keys.copy(draft, ("backend", "region", "availability_zone", "volume_id"))
    if (size := keys.entry("size")) is not None:
        plain: dict[str, Value] = {"size": meaning(size.node)}
        _in_gigabytes(draft, "size", plain, ("size",))
        draft.put("size", plain["size"], size)
    keys.copy(draft, ("auto_cleanup_duration", "tags"))
    keys.leave_rest(_WHY)
