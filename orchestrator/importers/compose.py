"""Reads Docker Compose files (the Compose Specification): services become services and tasks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from orchestrator.backend import Probe
from orchestrator.catalog.containers import images
from orchestrator.catalog.references import read_reference
from orchestrator.importers.draft import Draft, Word
from orchestrator.importers.theirs import Keys, Theirs, environment, meaning, pairs_in
from orchestrator.spec.interpolation import looks_secret
from orchestrator.spec.parts import exact_bytes, exact_seconds
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Value, resolve
from orchestrator.units import parse_duration

_WHY: Mapping[str, tuple[str, str]] = {
    "build": ("images are not built here", "build and push it, and name it as image"),
    "env_file": ("files of variables are not read", "write them into env"),
    "depends_on": ("runs do not wait for one another", "modelyard wait NAME --for ready"),
    "networks": ("runs have no networks of their own", "reach them through the gateway or their ports"),
    "network_mode": ("the network is the place's own", "publish ports"),
    "links": ("runs have no networks of their own", "reach them through the gateway or their ports"),
    "secrets": ("secrets are variables here", "modelyard secret set NAME, and NAME in env"),
    "configs": ("files are put in by files", "files: [./local:/path]"),
    "ipc": ("memory is not shared with the machine", "set resources.shm_size"),
    "devices": ("devices come with accelerators", "set resources.gpu"),
    "extra_hosts": ("names are the place's own", ""),
    "cap_add": ("there are no single capabilities", "set privileged"),
    "runtime": ("the place chooses its runtime", "set resources.gpu"),
    "profiles": ("there are no profiles", "keep it in a file of its own, and name files with -f"),
    "extends": ("documents do not extend one another", "write it out, or use YAML anchors"),
    "stop_signal": ("an end is asked for with SIGTERM", ""),
    "container_name": ("containers are named after runs", ""),
    "tmpfs": ("there are no file systems in memory", "set resources.shm_size for /dev/shm"),
    "ulimits": ("limits are raised where accelerators need it", ""),
    "platform": ("a processor is asked for by its cores", "set resources.cpu, such as arm:2.."),
}
_WHY_TOP: Mapping[str, tuple[str, str]] = {
    "networks": _WHY["networks"],
    "secrets": _WHY["secrets"],
    "configs": _WHY["configs"],
    "include": ("files are named on the command line", "import each of them"),
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_SCALE = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
"""Compose's units are powers of 1024 (Compose Specification, "Specifying byte values")."""
_REFERENCE = re.compile(r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*))")
_ALONE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?\?[^}]*)?\})")
_HOW = re.compile(r"(:?[-?+])?(.*)", re.DOTALL)
_OURS = re.compile(r"\$\{\{ (env|secrets)\.(\w+) \}\}")
_LOCAL_URL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])[^\s'\"|;&)]*")
_HOST = re.compile(r"(?:^|_)(?:HOST|HOSTNAME|SERVER|ADDR|ADDRESS|ENDPOINT|IP)(?:$|_)", re.IGNORECASE)
"""Variables whose whole value is the name of a machine."""
_INSTEAD = "compose hands this to the image's own entrypoint, if it has one; here it takes its place"
_SHELLS = ("/bin/sh", "sh", "/bin/bash", "bash")
_ENGINE_WORDS = (("vllm", "serve"), ("python3", "-m", "vllm.entrypoints.openai.api_server"), ())
"""How a command for vLLM's image may begin: with its entrypoint written out, or after it."""
_RENDERED = Probe()
_STARTS_S = 60
"""The least ``start_period`` that counts: compose stops nothing that is slower, and here it would end."""
_MAX_PORTS = 100
_ENDS = "without ports it is a task: it may end well"


def read(roots: tuple[Node, ...], theirs: Theirs) -> None:
    """Add a document for each of compose's services: a service where it has ports, else a task.

    >>> from orchestrator.importers import import_text
    >>> theirs = "services: {web: {image: 'nginx:1.29', ports: ['8080:80'], restart: always}}"
    >>> print(import_text(theirs, tool="compose", file="compose.yaml").text)
    type: service
    name: web
    image: nginx:1.29
    port: 8080:80
    <BLANKLINE>
    """
    for root in roots:
        top = theirs.mapping(root, "")
        services = top.mapping("services") if top else None
        if top is None:
            continue
        if services is None:
            theirs.leave_out(root, "no services: is it a compose file?")
            continue
        project = top.text("name")
        called = {
            alias: name for name, entry in services.node.entries.items() for alias in _called(name, entry)
        }
        for name in services.node.entries:
            if (keys := services.mapping(name)) is not None:
                others = {alias: other for alias, other in called.items() if other != name}
                _service(name, keys, f"{project}-{name}" if project else name, others)
        _named_volumes(top)
        top.ignore("version")
        top.leave_rest(_WHY_TOP)


def _service(name: str, keys: Keys, built: str, others: Mapping[str, str]) -> None:
    """Add one service's document.

    Args:
        name: What the file calls it.
        keys: What it says.
        built: What compose calls the image that it builds for it.
        others: The file's other services, by every name that it reaches them by there.
    """
    filler = _Filler(keys.theirs)
    if isinstance(filled := filler.node(keys.node), Entries):
        keys = Keys(keys.theirs, filled, keys.path)
    ports = list(_ports(keys))
    draft = keys.theirs.begin("service" if ports else "task", name, keys.node)
    image = keys.entry("image")
    if image is not None:
        draft.put("image", Word(_text(image.node)), image)
    elif (build := keys.node.entries.get("build")) is not None:
        draft.put("image", built, build, "what compose builds: push it to where it can be pulled from")
    if not _engine(draft, keys):
        _command(draft, keys)
    for key, ours in (("working_dir", "working_dir"), ("user", "user")):
        if (entry := keys.entry(key)) is not None:
            draft.put(ours, Word(_text(entry.node)), entry)
    keys.copy(draft, ("privileged",))
    if (env := keys.entry("environment")) is not None:
        values = environment(keys.theirs, env.node, keys.name("environment"), filler.variable)
        draft.put("env", values | _of_their_own(env.node), env)
    if (labels := keys.entry("labels")) is not None:
        said = pairs_in(keys.theirs, labels.node, keys.name("labels"))
        draft.put("tags", {key: filler.text(at, at.text) if at else "" for key, at in said}, labels)
    _publish(draft, keys, ports)
    _healthcheck(draft, keys)
    _mounts(draft, keys)
    _resources(draft, keys)
    _life(draft, keys)
    keys.ignore("init", "tty", "stdin_open", "pull_policy", "attach")
    keys.leave_rest(_WHY)
    _neighbours(keys, others)
    if filler.defaults:
        names = ", ".join(filler.defaults)
        draft.remark("name", f"at their defaults, as nothing beside the file is read: {names}")


def _called(name: str, entry: Entry) -> Iterator[str]:
    """Yield what a service is reached by in compose: its name, and what its container is called."""
    yield name
    said = entry.node.entries if isinstance(entry.node, Entries) else {}
    yield from (_text(said[key].node) for key in ("container_name", "hostname") if key in said)


def _neighbours(keys: Keys, others: Mapping[str, str]) -> None:
    """Note where it reaches other services of the file by their names, which mean nothing here."""
    name = "|".join(re.escape(other) for other in sorted(others, key=len, reverse=True) if other)
    if not name:
        return
    address = re.compile(rf"(?://|@)({name})(?=[:/?]|$)|(?<![\w./:@$-])({name})(?=:\d\d)")
    for key in ("environment", "command", "entrypoint"):
        for scalar, variable in _scalars(keys.node.entries.get(key)):
            text = scalar.text
            found = address.search(text) or (_HOST.search(variable) and re.fullmatch(f"({name})", text))
            if found:
                other = others[found[found.lastindex or 1]]
                what = f"{keys.name(key)}: service {other!r} is not reached by its name here"
                keys.theirs.leave_out(scalar, what, f"write where it answers: modelyard show {other}")


def _scalars(entry: Entry | None) -> Iterator[tuple[Scalar, str]]:
    """Yield the values of a key, each with the variable that it is of, "" where it is of none."""
    node = entry.node if entry else None
    if isinstance(node, Scalar):
        yield node, ""
    elif isinstance(node, Items):
        for item in node.items:
            if isinstance(item, Scalar):
                name, equals, text = item.text.partition("=")
                yield (replace(item, text=text), name) if equals else (item, "")
    elif node is not None:
        for name, inner in node.entries.items():
            if isinstance(inner.node, Scalar):
                yield inner.node, name


# --- text -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Filler:
    """Puts what compose's references stand for, as far as it can be told, into a service."""

    theirs: Theirs
    defaults: dict[str, None] = field(default_factory=dict)
    """Variables whose defaults were taken."""

    def node(self, node: Node) -> Node:
        """Return a tree with its references as ours; variables of the environment stay for later."""
        if isinstance(node, Scalar):
            if "$" not in node.text:
                return node
            text = self.text(node, node.text)
            return replace(node, text=text, value=text if node.style else resolve(text))
        if isinstance(node, Items):
            return replace(node, items=tuple(map(self.node, node.items)))
        filled = {
            key: entry if key == "environment" else replace(entry, node=self.node(entry.node))
            for key, entry in node.entries.items()
        }
        return replace(node, entries=filled)

    def variable(self, scalar: Scalar) -> str:
        """Return a variable's value; what compose refuses to start without is a secret."""
        return self.text(scalar, scalar.text, required="secrets")

    def text(self, at: Scalar, text: str, *, required: str = "") -> str:
        """Return a text with references as ours; defaults are taken, also those within defaults.

        >>> from orchestrator.errors import Problems
        >>> from orchestrator.spec.tree import Source
        >>> filler = _Filler(Theirs(Source("c.yaml", "", Problems()), "compose"))
        >>> filler.text(Scalar(1, 1, "", ""), "${TAG:-${OLD:-v1}} ${HOST} $$HOME ${X")
        'v1 ${{ env.HOST }} $HOME ${X'
        """
        parts: list[str] = []
        end = 0
        while found := _REFERENCE.search(text, end):
            parts.append(text[end : found.start()])
            end = found.end()
            if found["escaped"]:
                parts.append("$")
            elif found["plain"]:
                parts.append(_ours(found["plain"]))
            elif (close := _closing(text, end)) is None:
                parts.append(found[0])
            else:
                parts.append(self._value(at, found["name"], text[end:close], required))
                end = close + 1
        return "".join([*parts, text[end:]])

    def _value(self, at: Scalar, name: str, rest: str, required: str) -> str:
        how, other = found.groups() if (found := _HOW.fullmatch(rest)) else (None, "")
        match (how or "").removeprefix(":"):
            case "-":
                self.defaults[name] = None
                return self.text(at, other, required=required)
            case "+":
                what = f"${{{name}{how}…}} is taken as if {name} were not set"
                self.theirs.leave_out(at, what, "write what it is to be")
                return ""
            case "?":
                return _ours(name, required)
        return _ours(name)


def _closing(text: str, start: int) -> int | None:
    """Return where the brace is closed that was opened before ``start``."""
    depth = 1
    for found in re.compile(r"\$\{|\}").finditer(text, start):
        depth += 1 if found[0] == "${" else -1
        if not depth:
            return found.start()
    return None


def _ours(name: str, kind: str = "") -> str:
    return f"${{{{ {kind or ('secrets' if looks_secret(name) else 'env')}.{name} }}}}"


def _text(node: Node) -> str:
    return node.text if isinstance(node, Scalar) else ""


def _of_their_own(node: Node) -> dict[str, Value]:
    """Return the variables that only say ``NAME: ${NAME}``, which a bare name says here."""
    pairs: list[tuple[str, str]] = []
    if isinstance(node, Entries):
        pairs = [(name, e.node.text) for name, e in node.entries.items() if isinstance(e.node, Scalar)]
    elif isinstance(node, Items):
        texts = [item.text for item in node.items if isinstance(item, Scalar)]
        pairs = [(text.partition("=")[0], text.partition("=")[2]) for text in texts]
    return {
        name: None
        for name, text in pairs
        if (found := _ALONE.fullmatch(text)) and name in (found[1], found[2])
    }


def _words(node: Node) -> tuple[str, ...]:
    """Return a command's words: a list as it is, text as a shell splits it, references whole."""
    if isinstance(node, Items):
        return tuple(map(_text, node.items))
    text = _OURS.sub(r"${{\1.\2}}", _text(node))
    try:
        words = tuple(shlex.split(text))
    except ValueError:
        words = (text,)
    return tuple(re.sub(r"\$\{\{(\w+\.\w+)\}\}", r"${{ \1 }}", word) for word in words)


def _line(words: Iterable[str], *, is_list: bool) -> str:
    """Return words as a line of a shell; of a text, what a reference stands for may be several.

    >>> _line(["serve", "${{ env.ARGS }}", "a b"], is_list=False)
    "serve ${{ env.ARGS }} 'a b'"
    >>> _line(["serve", "${{ env.ARGS }}"], is_list=True)
    "serve '${{ env.ARGS }}'"
    """
    if is_list:
        return shlex.join(words)
    return " ".join(
        word if _OURS.search(word) and " " not in _OURS.sub("", word) else shlex.quote(word) for word in words
    )


# --- what runs ------------------------------------------------------------------------------


def _command(draft: Draft, keys: Keys) -> None:
    """Carry over what starts: a script as commands, words behind a known entrypoint with it."""
    entrypoint, command = keys.entry("entrypoint"), keys.entry("command")
    own = _words(entrypoint.node) if entrypoint else ()
    words = _words(command.node) if command else ()
    whole = (*own, *words)
    written = entrypoint or command
    # our commands take the entrypoint's place, so a script is one wherever the shell stands
    if written is not None and (script := _script(whole)) is not None:
        shell, lines = script
        draft.put("commands", list[Value](lines), written)
        if entrypoint is None:
            draft.remark("commands", _INSTEAD)
        if shell not in ("/bin/sh", "sh"):
            draft.put("shell", shell.removeprefix("/bin/"), written)
    elif entrypoint is not None:
        draft.put("entrypoint", list[Value](whole), entrypoint)
        if words:
            draft.remark("entrypoint", "compose's entrypoint and command together")
    elif command is not None and words and words[0].startswith("-"):
        draft.behind = words
        fix = "write entrypoint, the image's own with these words behind it"
        keys.leave_out("command", "arguments of an entrypoint that only the image knows", fix)
    elif command is not None and words:
        line = _line(words, is_list=isinstance(command.node, Items))
        draft.put("commands", [line], command, _INSTEAD)


def _script(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the shell and the lines of ``sh -ec SCRIPT``; None for another command."""
    if len(words) == 3 and words[0] in _SHELLS and re.fullmatch(r"-[elx]*c", words[1]):
        return words[0], words[2].split("\n")
    return None


def _engine(draft: Draft, keys: Keys) -> bool:
    """Carry a service of vLLM's image over as its model and arguments, so that it is sized.

    Returns:
        Whether it was; else the command is an ordinary one.
    """
    image, command = draft.values.get("image"), keys.entry("command")
    known = {one.repository for one in images("vllm")}
    if draft.type != "service" or command is None or read_reference(str(image)).repository not in known:
        return False
    entrypoint = keys.entry("entrypoint")
    words = (*(_words(entrypoint.node) if entrypoint else ()), *_words(command.node))
    start = next(start for start in _ENGINE_WORDS if words[: len(start)] == start)
    found = _arguments(words[len(start) :])
    if found is None:
        keys.taken -= {"entrypoint", "command"}
        return False
    model, args = found
    draft.put(
        "model", Word(model), command, "the command of vLLM's image: sized here, and started by the engine"
    )
    draft.put("engine", "vllm", command)
    args = {name: value for name, value in args.items() if name not in ("host", "port")}
    if args:
        draft.put("args", args, command)
    return True


def _arguments(words: Sequence[str]) -> tuple[str, dict[str, Value]] | None:
    """Return the model and the other options of a command line of vLLM's; None where it is unclear.

    >>> _arguments(["--model", "a/b", "--max-model-len=4096", "--enforce-eager"])
    ('a/b', {'max-model-len': 4096, 'enforce-eager': True})
    """
    args: dict[str, Value] = {}
    model: str | None = None
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            args[name] = _typed(value) if equals else True
        elif name and args[name] is True:
            args[name] = _typed(word)
        elif model is None and not args:
            model = word
        else:
            return None
    model = str(args.pop("model", model or "")) or None
    return (model, args) if model and "$" not in _OURS.sub("", model) else None


def _typed(text: str) -> Value:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text


# --- ports and health -----------------------------------------------------------------------

_Port = tuple[int, int | str | None]


def _ports(keys: Keys) -> Iterator[_Port]:
    """Yield pairs of the container's port and the machine's, published ones before exposed ones."""
    published = [port for node in keys.items("ports") for port in _port(keys, node, "ports")]
    yield from published
    inside = {inner for inner, _ in published}
    exposed = (port for node in keys.items("expose") for port in _port(keys, node, "expose"))
    yield from (port for port in exposed if port[0] not in inside)


def _port(keys: Keys, node: Node, key: str) -> Iterator[_Port]:
    if isinstance(node, Entries):
        long = Keys(keys.theirs, node, keys.name("ports"))
        published = long.text("published") or ""
        if re.fullmatch(r"\d+-\d+", published):  # any one of them
            published = ""
        text = f"{published}:{long.text('target') or ''}/{long.text('protocol') or 'tcp'}"
        long.ignore("mode", "host_ip", "name", "app_protocol")
        long.leave_rest()
    else:
        text = _text(node)
    pair, _, protocol = text.partition("/")
    *before, inner = pair.split(":")
    outer = before[-1] if before else ""
    inside, outside = _range(inner), _range(outer)
    why = (
        f"{protocol} is not published" if protocol not in ("", "tcp")
        else "no port of a container" if not inside
        else "as many ports on both sides" if outside and len(inside) != len(outside)
        else ""
    )  # fmt: skip
    if why:
        keys.theirs.leave_out(node, f"{keys.name(key)}: not carried over: {text!r}: {why}")
    elif outside:
        yield from zip(inside, outside, strict=True)
    else:
        yield from ((port, outer if "${{" in outer and len(inside) == 1 else None) for port in inside)


def _range(text: str) -> list[int]:
    """Return the ports of ``8000`` or ``8000-8002``; none for what is no port.

    >>> _range("8000-8002"), _range("x")
    ([8000, 8001, 8002], [])
    """
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        return []
    ports = range(int(first), int(last or first) + 1)
    return list(ports) if len(ports) <= _MAX_PORTS else []


def _publish(draft: Draft, keys: Keys, ports: Sequence[_Port]) -> None:
    if not ports:
        return
    at = keys.node.entries.get("ports") or keys.node.entries["expose"]
    first, *others = dict.fromkeys(ports)
    if draft.type == "service":
        draft.put("port", f"{first[1]}:{first[0]}" if first[1] else first[0], at)
    if others:
        rest = [f"{'*' if outer is None else outer}:{inner}" for inner, outer in others if inner != first[0]]
        draft.put("ports", list[Value](rest), at)


def _healthcheck(draft: Draft, keys: Keys) -> None:
    entry, check = keys.entry("healthcheck"), keys.mapping("healthcheck")
    if entry is None or check is None:
        return
    test = check.take("test")
    text = " ".join(_words(test)) if test else ""
    found = _LOCAL_URL.search(text)
    if draft.type != "service" or not found or " -X " in text:
        if text not in ("", "NONE"):
            is_task = draft.type != "service"
            why = "a task is not asked" if is_task else "its port is asked instead"
            fix = (
                "make it a service, with a port"
                if is_task
                else "write probes, an HTTP request or a connection"
            )
            keys.leave_out("healthcheck", f"a command inside the container: {why}", fix)
        return
    url = urlsplit(found[0])
    probe: dict[str, Value] = {"url": (url.path or "/") + (f"?{url.query}" if url.query else "")}
    for theirs, ours, default in (("interval", "interval", 30), ("timeout", "timeout", 30)):
        probe[ours] = exact_seconds(_seconds(check.text(theirs), default))
    probe["failures"] = meaning(check.take("retries") or Scalar(1, 1, "3", 3))
    start = _seconds(check.text("start_period"), 0)
    if start >= _STARTS_S and start != int(_RENDERED.start_s):
        probe["start_duration"] = exact_seconds(start)
    check.ignore("start_interval", "disable")
    check.leave_rest()
    draft.put("probes", [probe], entry)


def _seconds(text: str | None, default: int) -> int:
    """Return a duration of compose's, at least a second: ``1m30s``, ``500ms``.

    >>> _seconds("1m30s", 0), _seconds("500ms", 0), _seconds(None, 30)
    (90, 1, 30)
    """
    parts = re.findall(r"\d+(?:h|m(?!s)|s)", text or "")
    if text is None or not parts:
        return default if text is None else 1
    return max(1, parse_duration("".join(parts)))


# --- storage and resources ------------------------------------------------------------------


def _mounts(draft: Draft, keys: Keys) -> None:
    entry = keys.entry("volumes")
    found: list[Value] = [mount for node in keys.items("volumes") if (mount := _mount(draft, keys, node))]
    if found and entry:
        draft.put("volumes", found, entry)


def _mount(draft: Draft, keys: Keys, node: Node) -> Value:
    """Return a mount of ours; None, and a note, for what is neither a volume nor a folder."""
    if isinstance(node, Entries):
        long = Keys(keys.theirs, node, keys.name("volumes"))
        kind, source, target = long.text("type"), long.text("source"), long.text("target")
        read_only = meaning(long.take("read_only") or Scalar(1, 1, "", False)) is True
        long.ignore("consistency")
        for key in ("bind", "volume"):
            if inner := long.mapping(key):
                inner.path = long.name(key)
                inner.ignore("create_host_path", "nocopy", "selinux")
                inner.leave_rest()
        long.leave_rest()
    else:
        source, _, rest = _text(node).partition(":")
        target, _, mode = rest.partition(":")
        read_only = "ro" in mode.split(",")
        kind = "bind" if source.startswith((".", "/", "~", "${{")) else "volume"
    if kind not in ("volume", "bind") or not source or not target:
        what = "a volume needs a name, and only volumes and folders are mounted"
        keys.theirs.leave_out(node, f"{keys.name('volumes')}: not carried over: {what}")
        return None
    keys.theirs.folders |= {found[2] for found in _OURS.finditer(f"{source}:{target}")}
    name = re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-") if kind == "volume" else source
    if name != source:
        draft.remark("volumes", f"compose's volume {source!r} is {name!r} here")
    return f"{name}:{target}" + (":ro" if read_only else "")


def _named_volumes(top: Keys) -> None:
    """Add a volume for each that the file declares, unless somebody else keeps it."""
    volumes = top.mapping("volumes")
    for name in volumes.node.entries if volumes else ():
        assert volumes is not None
        said = volumes.mapping(name)
        if said and "external" in said.node.entries:
            volumes.leave_out(
                name, "somebody else made it", f"make a volume {name!r}, and copy what it holds"
            )
            continue
        if said:
            said.ignore("name")
            said.leave_rest()
        top.theirs.begin("volume", name, volumes.node.entries[name].node)


def _resources(draft: Draft, keys: Keys) -> None:
    deploy = keys.mapping("deploy")
    said = deploy.mapping("resources") if deploy else None
    limits, reserved = (said.mapping(key) if said else None for key in ("limits", "reservations"))
    parts = [part for part in (limits, reserved) if part]
    cores = [*((part, "cpus") for part in parts), (keys, "cpus"), (keys, "cpu_count")]
    memory = [*((part, "memory") for part in parts), (keys, "mem_limit"), (keys, "mem_reservation")]
    wanted: dict[str, Value] = {}
    if count := _asked(cores, _cores):
        wanted["cpu"] = f"{count:g}.."
    if size := _asked(memory, _bytes):
        wanted["memory"] = f"{exact_bytes(int(size))}.."
    if size := _asked([(keys, "shm_size")], _bytes):
        wanted["shm_size"] = exact_bytes(int(size))
    if gpu := _gpus(keys, reserved):
        wanted["gpu"] = gpu
        draft.remark("resources", "compose says how many accelerators, not which: any will do")
        keys.ignore("runtime", "ipc", "ulimits")
    keys.ignore("memswap_limit")
    if wanted:
        draft.put("resources", wanted, keys.node)
    if deploy:
        _replicas(draft, deploy)
        for part in (limits, reserved, said, deploy):
            if part:
                part.leave_rest()


def _asked(said: Iterable[tuple[Keys, str]], read: Callable[[str], float | None]) -> float | None:
    """Return what the first of several keys says, None for nothing; what cannot be read is left out."""
    found: float | None = None
    for keys, key in said:
        if (node := keys.take(key)) is None:
            continue
        value = read(_text(node))
        if value is None:
            keys.leave_out(key, "not a number that can be read", "set it in resources")
        found = found or value
    return found


def _cores(text: str) -> float | None:
    """Return a number of cores: ``1.5``; None for what is none.

    >>> _cores("1.5"), _cores("x")
    (1.5, None)
    """
    return float(text) if re.fullmatch(r"\d{1,6}(?:\.\d{1,9})?", text.strip()) else None


def _bytes(text: str) -> int | None:
    """Return the bytes that compose means: ``64m``, ``2gb``, ``1024``.

    >>> _bytes("64m"), _bytes("2gb"), _bytes("x")
    (67108864, 2147483648, None)
    """
    found = _SIZE.fullmatch(text.strip())
    return int(float(found[1]) * _SCALE[found[2].lower()]) if found else None


def _gpus(keys: Keys, reserved: Keys | None) -> Value:
    """Return how many accelerators are reserved, as ``deploy`` or ``gpus`` says; None for none."""
    devices = [*(reserved.items("devices") if reserved else ()), *keys.items("gpus")]
    counts: list[str] = []
    is_amd = False
    for node in devices:
        if not isinstance(node, Entries):  # gpus: all
            counts.append("1..")
            continue
        device = Keys(keys.theirs, node, keys.name("devices"))
        driver, count = device.text("driver"), device.text("count") or "all"
        ids = device.items("device_ids")
        device.ignore("capabilities")
        device.leave_rest()
        is_amd = is_amd or driver == "amd"
        counts.append(str(len(ids)) if ids else "1.." if count in ("all", "-1") else count)
    if not counts:
        return None
    number: str | int = sum(map(int, counts)) if all(map(str.isdecimal, counts)) else counts[0]
    return f"amd:{number}" if is_amd else number


def _replicas(draft: Draft, deploy: Keys) -> None:
    entry = deploy.entry("replicas")
    if entry is not None and draft.type == "service":
        draft.put("replicas", meaning(entry.node), entry)
    if (policy := deploy.mapping("restart_policy")) and draft.type == "task":
        if (policy.text("condition") or "any") != "none":
            draft.put("retry", {"on_events": ["error"]}, policy.node, _ENDS)
        policy.ignore("delay", "max_attempts", "window")
    deploy.ignore("mode")


def _life(draft: Draft, keys: Keys) -> None:
    """Carry over how it ends and starts again; services are started again anyway."""
    restart = keys.entry("restart")
    if restart is not None and draft.type == "task" and _text(restart.node) not in ("no", "false"):
        draft.put("retry", {"on_events": ["error"]}, restart, _ENDS)
    if (grace := keys.entry("stop_grace_period")) is not None:
        draft.put("stop_duration", exact_seconds(_seconds(_text(grace.node), 10)), grace)
    if (scale := keys.entry("scale")) is not None and draft.type == "service":
        draft.put("replicas", meaning(scale.node), scale)
