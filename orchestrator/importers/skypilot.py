"""Reads SkyPilot's tasks, jobs and services (0.10): scripts and machines become tasks and services."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from orchestrator.catalog.hardware import tpu_slice
from orchestrator.importers.draft import Draft
from orchestrator.importers.theirs import Keys, Theirs, environment, meaning, renamed
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Value

_VARIABLES = {
    "SKYPILOT_NODE_RANK": "MODELYARD_NODE_RANK",
    "SKYPILOT_NODE_IPS": "MODELYARD_NODES_IPS",
    "SKYPILOT_NUM_NODES": "MODELYARD_NODES_NUM",
    "SKYPILOT_NUM_GPUS_PER_NODE": "MODELYARD_GPUS_PER_NODE",
}
_WHY: Mapping[str, tuple[str, str]] = {
    "config": ("a configuration of SkyPilot's own", "places are configured in config.yaml"),
    "experimental": ("a configuration of SkyPilot's own", "places are configured in config.yaml"),
    "inputs": ("data is not moved between places", ""),
    "outputs": ("data is not moved between places", ""),
    "event_callback": ("nothing is called", "read modelyard events"),
    "pool": ("runs take machines from fleets", "name one with fleets"),
}
_WHY_RESOURCES: Mapping[str, tuple[str, str]] = {
    "disk_tier": ("disks have no tiers", ""),
    "network_tier": ("networks have no tiers", ""),
    "accelerator_args": ("the image brings its runtime", ""),
    "autostop": ("machines are given back by themselves", "set idle_duration, how long one is kept"),
    "local_disk": ("disks are not told apart", ""),
}
_ANYWHERE = frozenset(("infra", "cloud", "region", "zone", "accelerators"))
_BUCKET = re.compile(r"[a-z0-9]+://")
_SAME_BACKEND = {"k8s": "kubernetes"}
_ADDRESSES = re.compile(
    r"""(?:\$\(|`)\s*echo\s+"?\$\{?SKYPILOT_NODE_IPS\}?"?\s*\|\s*(head\s+-(?:n\s*)?1|wc\s+-l)\s*(?:\)|`)"""
)
"""The first of all addresses, and how many there are (SkyPilot, "Distributed jobs")."""
_LASTS = re.compile(r"\b(?:cd|export|source|set|shopt|ulimit|alias|conda|exit)\b|(?<!\S)\.\s|=")
"""What a command may leave behind in its shell."""
_REMARKS = {
    "setup": "in SkyPilot a shell of its own, which goes on where a command fails",
    "commands": "SkyPilot's scripts go on where a command fails",
}
_READY_S = 1_200
"""How long a replica may take to be ready where the file does not say (SkyPilot, readiness_probe)."""
_MAX_PORTS = 100


def read(roots: tuple[Node, ...], theirs: Theirs) -> None:
    """Add a task or a service for each document; a pipeline's become tasks without their order.

    >>> from orchestrator.importers import import_text
    >>> theirs = "resources: {accelerators: 'H100:8', cpus: 16+}\\nrun: |\\n  nvidia-smi\\n  date"
    >>> print(import_text(theirs, tool="skypilot", file="smi.yaml").text)
    type: task
    # skypilot's file gives no name
    # SkyPilot's own machine is left behind: name an image for places with containers
    name: smi
    # SkyPilot runs its scripts in bash
    shell: bash
    resources:
      gpu: H100:8
      cpu: 16..
    # SkyPilot's scripts go on where a command fails
    commands:
    - |-
      set +e
      nvidia-smi
      date
    <BLANKLINE>
    """
    documents = [keys for root in roots if (keys := theirs.mapping(root, "")) is not None]
    if len(documents) > 1 and set(documents[0].node.entries) <= {"name", "execution"}:
        header = documents.pop(0)
        theirs.leave_out(
            header.node, "the order of a pipeline's tasks is not carried over", "apply one after the other"
        )
    for keys in documents:
        _document(keys)


def _document(keys: Keys) -> None:
    service = keys.mapping("service")
    draft = keys.theirs.begin("service" if service else "task", keys.text("name"), keys.node)
    envs = _environment(draft, keys)
    at = keys.node.entries.get("run") or keys.node
    draft.put("shell", "bash", at, "SkyPilot runs its scripts in bash")
    resources = keys.mapping("resources")
    ports = _resources(draft, resources, envs) if resources else ()
    if (nodes := keys.entry("num_nodes")) is not None:
        draft.put("nodes", meaning(nodes.node), nodes)
    _workdir(draft, keys)
    _file_mounts(draft, keys, envs)
    _volumes(draft, keys)
    _script(draft, keys, "setup", "setup")
    _script(draft, keys, "run", "commands")
    if service:
        _service(draft, service, ports)
    elif ports:
        draft.put("ports", list[Value](ports), resources.node if resources else keys.node)
    keys.leave_rest(_WHY)


def _environment(draft: Draft, keys: Keys) -> Mapping[str, Value]:
    """Carry variables over; secrets become bare names, whatever value the file gives them."""
    envs, secrets = keys.entry("envs"), keys.entry("secrets")
    found: dict[str, Value] = {}
    if envs:
        found |= environment(keys.theirs, envs.node, "envs")
    if secrets and isinstance(secrets.node, Entries):
        for name, entry in secrets.node.entries.items():
            found[name] = None
            if not (isinstance(entry.node, Scalar) and entry.node.value in (None, "")):
                keys.theirs.leave_secret(entry, name)
    if first := envs or secrets:
        draft.put("env", dict(found), first)
    return found


def _script(draft: Draft, keys: Keys, theirs: str, ours: str) -> None:
    entry = keys.entry(theirs)
    if entry is None:
        return
    if not isinstance(entry.node, Scalar):
        keys.leave_out(theirs, "expected a script")
        return
    text, unknown = renamed(_ADDRESSES.sub(_address, entry.node.text), _VARIABLES, "SKYPILOT_")
    if "MODELYARD_NODES_IPS" in text:
        draft.remark(ours, "MODELYARD_NODES_IPS is set where there are several nodes, but not in a cluster")
    script = text.rstrip("\n")
    as_there = _as_there(script, is_setup=ours == "setup")
    draft.put(ours, [as_there], entry, _REMARKS[ours] if as_there != script else "")
    if text != entry.node.text:
        draft.remark(ours, "SkyPilot's SKYPILOT_ variables are MODELYARD_ here")
    for name in unknown:
        keys.theirs.leave_out(entry, f"{theirs}: {name} is not set here", "use the MODELYARD_ variables")


def _address(found: re.Match[str]) -> str:
    """Return what a script made of all addresses, which not every place tells."""
    return "$MODELYARD_NODES_NUM" if found[1].startswith("wc") else "${MODELYARD_MASTER_NODE_IP:-127.0.0.1}"


def _as_there(script: str, *, is_setup: bool) -> str:
    """Return a script that does here what it does in SkyPilot.

    There a script goes on where a command fails, and its last one counts; setup has a shell of its own,
    whose folder and variables are not those of the commands.

    >>> print(_as_there("cd app\\nmake", is_setup=True))
    (
    set +e
    cd app
    make
    )
    >>> _as_there("python main.py", is_setup=False)
    'python main.py'
    """
    is_one = not re.search(r"[\n;]", script)
    if is_setup and not (is_one and not _LASTS.search(script)):
        return f"(\nset +e\n{script}\n)"
    stops = re.match(r"(?:\s*#[^\n]*\n|\s)*set -\w*e", script)
    return script if is_one or stops else f"set +e\n{script}"


# --- machines -------------------------------------------------------------------------------


def _resources(draft: Draft, keys: Keys, envs: Mapping[str, Value]) -> tuple[Value, ...]:
    """Carry over what machines are asked for; return the ports."""
    alternatives = _alternatives(draft, keys)
    wanted: dict[str, Value] = {}
    if gpu := _accelerators(_in_force(keys, alternatives, "accelerators")):
        wanted["gpu"] = gpu
    for theirs, ours, unit in (("cpus", "cpu", ""), ("memory", "memory", "GB"), ("disk_size", "disk", "GB")):
        if size := _size(keys, theirs, unit, or_more=theirs == "disk_size"):
            wanted[ours] = size
    if wanted:
        draft.put("resources", wanted, keys.node)
    _infra(draft, _in_force(keys, alternatives, "infra", "cloud"))
    _image(draft, keys, envs)
    _money(draft, keys)
    ports = tuple(_ports(keys))
    keys.leave_rest(_WHY_RESOURCES)
    return ports


def _alternatives(draft: Draft, keys: Keys) -> list[Keys]:
    """Return the alternatives that differ in place and accelerators only; the others are left out."""
    found: list[Keys] = []
    for key in ("any_of", "ordered"):
        for node in keys.items(key):
            one = keys.theirs.mapping(node, keys.name(key))
            if one is None:
                continue
            if not set(one.node.entries) <= _ANYWHERE:
                keys.theirs.leave_out(
                    node, f"{one.path}: not carried over: alternatives differ in place only"
                )
                continue
            found.append(one)
            draft.remark("resources", f"the alternatives of {key} together; the cheapest is taken")
    return found


def _in_force(keys: Keys, alternatives: list[Keys], *names: str) -> list[Keys]:
    """Return whose word counts about ``names``: the alternatives', where each of them says something."""
    if alternatives and all(any(name in one.node.entries for name in names) for one in alternatives):
        keys.ignore(*names)
        return alternatives
    return [keys, *alternatives]


def _accelerators(places: Iterable[Keys]) -> Value:
    """Return all that are named with one count, which is the first's."""
    names: list[str] = []
    count = ""
    for keys in places:
        for name, many, node in _named(keys):
            if count not in ("", many):
                what = f"accelerators: {name}:{many} is not carried over: one count for all, here {count}"
                keys.theirs.leave_out(node, what, "write a spec of its own for it")
                continue
            count = many
            names.append(name)
    unique = ",".join(dict.fromkeys(names))
    return f"{unique}:{count}" if unique else None


def _named(keys: Keys) -> Iterable[tuple[str, str, Node]]:
    """Yield accelerators with their counts: ``H100:8``, ``[L4, A10G]``, ``{H100: 8}``."""
    node = keys.take("accelerators")
    if isinstance(node, Entries):
        # a set of SkyPilot's, {A100:8, L4:1}, is a mapping to nothing
        pairs = [
            (name if (many := _text(entry.node)) in ("", "null", "~") else f"{name}:{many}", entry.node)
            for name, entry in node.entries.items()
        ]
    elif isinstance(node, Items):
        pairs = [(_text(item), item) for item in node.items]
    else:
        pairs = [(_text(node), node)] if node else []
    for text, at in pairs:
        name, _, count = text.partition(":")
        if tpu := tpu_slice(name):
            yield tpu[0], str(tpu[1] * int(count) if count.isdecimal() else tpu[1]), at
        else:
            yield name, count or "1", at


def _text(node: Node) -> str:
    return node.text if isinstance(node, Scalar) else ""


def _size(keys: Keys, key: str, unit: str, *, or_more: bool = False) -> Value:
    """Return ``8+`` as ``8..`` with the unit that SkyPilot leaves out; factors are left out."""
    text = keys.text(key)
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)(\+?)", text.strip())
    if found is None or found[2] == "x":
        keys.leave_out(key, f"no size: {text!r}", f"set resources.{'cpu' if key == 'cpus' else 'memory'}")
        return None
    number = f"{found[1]}{(found[2].upper() if unit else '') or unit}"
    if found[3] or or_more:
        return f"{number}.."
    return number if unit else float(number) if "." in number else int(number)


def _infra(draft: Draft, places: Iterable[Keys]) -> None:
    """Carry clouds, regions and zones over; SkyPilot's names of clouds become names of backends."""
    remark = "backends of these names have to be in config.yaml"
    found: dict[str, list[str]] = {"backends": [], "regions": [], "availability_zones": []}
    at: Entry | None = None
    for keys in places:
        infra = keys.entry("infra")
        parts = _text(infra.node).split("/") if infra else []
        at = at or infra or keys.node.entries.get("cloud") or keys.node.entries.get("region")
        said = (
            [*parts, "", "", ""][:3] if infra else [keys.text(k) or "" for k in ("cloud", "region", "zone")]
        )
        for name, value in zip(found, said, strict=True):
            if name == "backends" and "${{" not in value:
                value = _SAME_BACKEND.get(value.lower(), value.lower())
            if value not in ("", "*", *found[name]):
                found[name].append(value)
    for name, values in found.items():
        if values and at:
            draft.put(name, list[Value](values), at, remark if name == "backends" else "")


def _image(draft: Draft, keys: Keys, envs: Mapping[str, Value]) -> None:
    entry = keys.entry("image_id")
    text = _filled(_text(entry.node), envs) if entry else ""
    if entry is None:
        draft.remark(
            "name", "SkyPilot's own machine is left behind: name an image for places with containers"
        )
    elif text.startswith("docker:") and "$" not in text:
        draft.put("image", text.removeprefix("docker:"), entry)
        draft.put("entrypoint", [], entry, "SkyPilot runs its scripts without the image's entrypoint")
    else:
        keys.leave_out("image_id", "an image of a machine, not of a container", "set image")


def _filled(text: str, envs: Mapping[str, Value]) -> str:
    """Return ``text`` with ``$NAME`` and ``${NAME}`` as the file's own envs have them."""
    return re.sub(
        r"\$(?:\{(\w+)\}|(\w+))",
        lambda found: value if isinstance(value := envs.get(found[1] or found[2]), str) else found[0],
        text,
    )


def _money(draft: Draft, keys: Keys) -> None:
    spot = keys.entry("use_spot")
    if spot and meaning(spot.node) is True:
        draft.put("spot_policy", "spot", spot)
    for theirs, ours in (("max_hourly_cost", "max_price"), ("instance_type", "instance_types")):
        if (entry := keys.entry(theirs)) is not None:
            draft.put(ours, meaning(entry.node), entry)
    keys.copy(draft, ("priority",))
    if (labels := keys.entry("labels")) is not None:
        draft.put("tags", meaning(labels.node), labels)
    for key in ("job_recovery", "spot_recovery"):
        entry = keys.entry(key)
        if entry and _text(entry.node).lower() != "none":
            events: list[Value] = ["no-capacity", "interruption"]
            if isinstance(entry.node, Entries) and "max_restarts_on_errors" in entry.node.entries:
                events.append("error")
            draft.put("retry", {"on_events": events}, entry, f"SkyPilot's {key}, without a limit in number")


def _ports(keys: Keys) -> Iterable[int]:
    for node in keys.items("ports"):
        first, _, last = _text(node).partition("-")
        ends = (first, last or first)
        if not all(end.isdecimal() for end in ends) or not 0 <= int(ends[1]) - int(first) < _MAX_PORTS:
            keys.theirs.leave_out(node, f"{keys.name('ports')}: not carried over: {_text(node)!r} is no port")
            continue
        yield from range(int(first), int(ends[1]) + 1)


# --- files ----------------------------------------------------------------------------------


def _workdir(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("workdir")
    if entry is None:
        return
    if isinstance(entry.node, Scalar):
        local: dict[str, Value] = {"local_path": entry.node.text, "path": "."}
        draft.put("files", [local], entry, "SkyPilot's workdir; what .skyignore names comes along")
        return
    git = keys.mapping("workdir")
    if git:
        repo: dict[str, Value] = {"url": git.text("url")}
        if ref := git.text("ref"):
            repo["branch"] = ref
        draft.put("repos", [repo], entry)
        git.leave_rest()


def _file_mounts(draft: Draft, keys: Keys, envs: Mapping[str, Value]) -> None:
    mounts = keys.mapping("file_mounts")
    entry = keys.entry("file_mounts")
    if mounts is None or entry is None:
        return
    files: list[Value] = []
    for target in mounts.node.entries:
        node = mounts.take(target)
        text = _filled(_text(node), envs) if node else ""
        if not text or _BUCKET.match(text) or "$" in text:
            fix = "fetch it in setup, or keep it in a volume"
            mounts.leave_out(target, "buckets are not mounted", fix)
            continue
        path = target.rstrip("/") or "/"
        files.append({"local_path": text, "path": path.replace("~/", "/root/", 1)})
        if path.startswith("~/"):
            draft.remark("files", "~ is taken for /root, the home of the user that most images have")
    if files:
        before = draft.values.get("files")
        draft.put("files", [*(before if isinstance(before, list) else ()), *files], entry)


def _volumes(draft: Draft, keys: Keys) -> None:
    volumes, entry = keys.mapping("volumes"), keys.entry("volumes")
    if volumes is None or entry is None:
        return
    found: list[Value] = [
        f"{name}:{target}" for target in volumes.node.entries if (name := volumes.text(target))
    ]
    if found:
        draft.put("volumes", found, entry, "volumes of these names have to be there: type: volume")


# --- services -------------------------------------------------------------------------------


def _service(draft: Draft, keys: Keys, ports: tuple[Value, ...]) -> None:
    port = keys.entry("ports")
    served = meaning(port.node) if port is not None else next(iter(ports), None)
    if served is not None:
        draft.put("port", served, port or keys.node)
    if others := [each for each in ports if str(each) != str(served)]:
        draft.put("ports", others, keys.node)
    _probe(draft, keys)
    replicas = keys.entry("replicas")
    if replicas is not None:
        draft.put("replicas", meaning(replicas.node), replicas)
    _policy(draft, keys)
    keys.leave_rest(
        {
            "load_balancing_policy": ("the gateway has one policy", ""),
            "tls": ("certificates are the gateway's", ""),
            "pool": ("runs take machines from fleets", "name one with fleets"),
        }
    )


def _probe(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("readiness_probe")
    if entry is None:
        return
    if isinstance(entry.node, Scalar):
        draft.put("probes", [{"url": entry.node.text, "start_duration": f"{_READY_S}s"}], entry)
        return
    said = keys.mapping("readiness_probe")
    if said is None:
        return
    probe: dict[str, Value] = {"url": said.text("path"), "start_duration": f"{_READY_S}s"}
    for theirs, ours in (("initial_delay_seconds", "start_duration"), ("timeout_seconds", "timeout")):
        if seconds := said.text(theirs):
            probe[ours] = f"{seconds}s"
    if (post := said.take("post_data")) is not None:
        probe |= {"method": "post", "body": _json(meaning(post))}
    if (headers := said.mapping("headers")) is not None:
        probe["headers"] = [{"name": n, "value": headers.text(n) or ""} for n in headers.node.entries]
    said.leave_rest()
    draft.put("probes", [probe], entry)


def _json(value: Value) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _policy(draft: Draft, keys: Keys) -> None:
    entry, policy = keys.entry("replica_policy"), keys.mapping("replica_policy")
    if entry is None or policy is None:
        return
    low, high = policy.text("min_replicas") or "1", policy.text("max_replicas")
    target = policy.take("target_qps_per_replica")
    if high in (None, low) or not isinstance(target, Scalar):
        draft.put("replicas", int(low) if low.isdecimal() else low, entry)
    else:
        scaling: dict[str, Value] = {"metric": "rps", "target": target.value}
        for way in ("up", "down"):
            if seconds := policy.text(f"{way}scale_delay_seconds"):
                scaling[f"scale_{way}_delay"] = f"{seconds}s"
        draft.put("replicas", f"{low}..{high}", entry)
        draft.put("scaling", scaling, entry)
    policy.leave_rest({"base_ondemand_fallback_replicas": ("all replicas have one", "set spot_policy")})
