"""The configured places: ``config.yaml`` read, and each backend built when it is asked for."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import ipaddress
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from orchestrator.backend import Backend, Can, Check, HeldMachine, Holder
from orchestrator.errors import ConfigError, Misconfigured, NotFound, Position, Problem, Problems, SpecError
from orchestrator.frozen import frozen
from orchestrator.planner.mirrors import Mirrors
from orchestrator.spec.models import Fleet
from orchestrator.spec.source import decode, parse
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Source, plain

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

EXAMPLE = "for example mirrors: {registries: {docker.io: registry.lan/hub}, hub: http://hub.lan}"
Read = TypeVar("Read")

GROUP = "modelyard.backends"
"""The entry-point group; built-in backends and those of others come the same way."""


@frozen
class Place:
    """One entry of the configuration: a backend's name, its type, and its own options.

    ``prices`` is what its owner counts for an hour of one accelerator, by catalog name, and under
    ``machine`` for a machine without any. ``required`` is false for the places that are tried when
    nothing is configured: one that does not answer is then left out without a word.
    """

    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    required: bool = True
    wishes: Mapping[str, Any] = field(default_factory=dict)
    """Options that come from elsewhere, for whatever type knows them; they outrank the configured."""
    project: str | None = None
    """Whose it is, None where everybody may use it."""
    held: tuple[HeldMachine, ...] | None = None
    """The machines of a fleet that rents them; None for every other place."""


DEFAULT = (Place("docker", "docker", required=False), Place("process", "process", required=False))
"""Without a configuration: this machine's engine where one answers, and plain processes."""


def read_places(path: Path | None) -> tuple[Place, ...]:
    """Return the places of the configuration at ``path``, preferred ones first.

    Raises:
        ConfigError: the file cannot be read or says something we do not know; it carries every
            problem with its line and column.
    """
    return DEFAULT if path is None else _read(path, _places)


def read_mirrors(path: Path | None) -> Mirrors:
    """Return where images and models are had from, as the configuration at ``path`` says.

    Raises:
        ConfigError: as for ``read_places``.
    """
    return Mirrors() if path is None else _read(path, _mirrors_alone)


def _read(path: Path, understand: Callable[[Source | None, Problems], Read]) -> Read:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            fix="check --config and MODELYARD_CONFIG",
        ) from None
    problems = Problems()
    found = understand(decode(content, str(path), problems), problems)
    try:
        problems.settle()
    except SpecError as error:
        raise ConfigError(str(error), where=None) from None
    return found


def _mirrors_alone(source: Source | None, problems: Problems) -> Mirrors:
    documents = parse(source) if source else ()
    return _mirrors(documents[0] if documents else None, source, problems)


def _mirrors(root: Node | None, source: Source | None, problems: Problems) -> Mirrors:
    """Return the table under ``mirrors``; every value of it is checked."""
    entry = root.entries.get("mirrors") if isinstance(root, Entries) else None
    if source is None or entry is None or (isinstance(entry.node, Scalar) and entry.node.value is None):
        return Mirrors()
    if not isinstance(entry.node, Entries):
        _add(problems, source, entry.node, "expected registries, hub or both", EXAMPLE)
        return Mirrors()
    for key in entry.node.entries.keys() - {"registries", "hub"}:
        _add(problems, source, entry.node.entries[key], f"unknown key {key!r}", "known: registries, hub")
    return Mirrors(_registries(entry.node, source, problems), _hub(entry.node, source, problems))


def _registries(table: Entries, source: Source, problems: Problems) -> dict[str, str]:
    entry = table.entries.get("registries")
    said = plain(entry.node) if entry else None
    if entry is None or said is None:
        return {}
    if not isinstance(said, dict) or not all(map(_is_name, [*said.keys(), *said.values()])):
        _add(problems, source, entry.node, "registries: expected names, and what they become", EXAMPLE)
        return {}
    return {key: str(value) for key, value in said.items()}


def _hub(table: Entries, source: Source, problems: Problems) -> str:
    entry = table.entries.get("hub")
    said = plain(entry.node) if entry else None
    if entry is None or said is None:
        return ""
    if not isinstance(said, str) or not said.startswith(("http://", "https://")):
        _add(
            problems, source, entry.node, f"hub: expected an address, got {said!r}", "such as http://hub.lan"
        )
        return ""
    return said.rstrip("/")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "://" not in value and value[0] != "/"


def _places(source: Source | None, problems: Problems) -> tuple[Place, ...]:
    documents = parse(source) if source else ()
    if source is None or not documents:
        return DEFAULT
    root = documents[0]
    if not isinstance(root, Entries):
        _add(problems, source, root, "expected a mapping with the key 'backends'")
        return DEFAULT
    for key in root.entries:
        if key not in ("backends", "mirrors"):
            _add(problems, source, root.entries[key], f"unknown key {key!r}", "known: backends, mirrors")
    _mirrors(root, source, problems)
    entry = root.entries.get("backends")
    if entry is None or (isinstance(entry.node, Scalar) and entry.node.value is None):
        return DEFAULT
    if not isinstance(entry.node, Items):
        _add(problems, source, entry.node, "expected a list of backends")
        return DEFAULT
    return tuple(_read_all(entry.node, source, problems))


def _read_all(items: Items, source: Source, problems: Problems) -> Iterator[Place]:
    seen: set[str] = set()
    for node in items.items:
        value = {"type": node.value} if isinstance(node, Scalar) else plain(node)
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            _add(problems, source, node, "expected a backend with its type", "for example {type: docker}")
            continue
        kind = str(value.pop("type"))
        name = str(value.pop("name", kind))
        if name in seen:
            _add(problems, source, node, f"two backends are called {name!r}", "give one another 'name'")
        if _point(kind) is None:
            known = _known()
            near = difflib.get_close_matches(kind, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            _add(problems, source, node, f"unknown backend type {kind!r}", fix)
        seen.add(name)
        value.pop("prices", None)
        entry = node.entries.get("prices") if isinstance(node, Entries) else None
        yield Place(name, kind, value, _prices(entry.node, source, problems) if entry else {})


def _prices(node: Node, source: Source, problems: Problems) -> dict[str, float]:
    """Return the owner's prices by catalog name; a price of 0 would say that power and wear cost nothing."""
    if not isinstance(node, Entries):
        _add(problems, source, node, "expected prices by accelerator", "for example prices: {H100-80GB: 2.1}")
        return {}
    found: dict[str, float] = {}
    for said, entry in node.entries.items():
        if isinstance(entry.node, Scalar) and entry.node.is_unread:
            continue
        price = plain(entry.node)
        if isinstance(price, bool) or not isinstance(price, int | float) or price <= 0:
            what = f"prices: {said}: expected dollars an hour above 0, got {price!r}"
            _add(problems, source, entry, what, "leave it out where it costs nothing")
            continue
        name = said if said == "machine" else _catalog_name(said, entry, source, problems)
        if name in found:
            _add(problems, source, entry, f"prices: {said}: {name} has a price already", "keep one of them")
        elif name:
            found[name] = float(price)
    return found


def _catalog_name(said: str, entry: Entry, source: Source, problems: Problems) -> str | None:
    """Return the catalog name of the one accelerator that ``said`` means, None where it is not one."""
    # the catalog costs 40 ms of CPU: read where somebody set a price
    from orchestrator.catalog.hardware import candidates, known_names

    if len(devices := candidates(said)) == 1:
        return devices[0].name
    if devices:
        what = f"prices: {said!r} may be any of {len(devices)} accelerators"
        _add(problems, source, entry, what, f"one of: {', '.join(device.name for device in devices)}")
        return None
    spellings = {_alike(name): name for name in sorted(known_names())} | {"machine": "machine"}
    near = [spellings[key] for key in difflib.get_close_matches(_alike(said), spellings, 3)]
    full = dict.fromkeys(each for name in near for each in ([d.name for d in candidates(name)] or [name]))
    nearest = ", ".join([*full][:4])
    fix = f"nearest: {nearest}" if near else "modelyard catalog list accelerators has the names"
    _add(problems, source, entry, f"prices: unknown accelerator {said!r}", fix)
    return None


def _alike(name: str) -> str:
    """Return a name as it is compared with others: in small letters, an O as a 0."""
    return name.casefold().replace("o", "0")


def _add(problems: Problems, source: Source, node: Any, what: str, fix: str | None = None) -> None:
    at = Position(source.file, node.line, node.column)
    problems.found.append(Problem(at, what, fix, source.line(node.line)))


def _point(kind: str) -> EntryPoint | None:
    """Return where the backend of a type is: our own, then anybody's; None where none is installed.

    Only for others are the files of all that is installed read.
    """
    # importlib.metadata costs 40 ms of CPU: imported when a backend is looked up
    from importlib.metadata import PackageNotFoundError, distribution

    with contextlib.suppress(PackageNotFoundError):
        for point in distribution("modelyard").entry_points:
            if point.group == GROUP and point.name == kind:
                return point
    return _known().get(kind)


def _known() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


class UnknownPlace(NotFound, KeyError):
    """No place of that name is configured or on record; a mapping says so in its own way."""


Held = Mapping[str, Mapping[str, str]]
"""Hosts of one place on which nothing new starts, each with ``reason`` and ``leave``."""


@frozen
class Recorded:
    """What the record says of places: the fleets among them, and the hosts held back, by place."""

    fleets: tuple[Place, ...] = ()
    held: Mapping[str, Held] = field(default_factory=dict)


class Unusable:
    """Stands for a place that could not be built: asked for anything of the port, it says why.

    Args:
        name: The place's name.
        error: What its configuration says wrong.
    """

    can: frozenset[Can] = frozenset()

    def __init__(self, name: str, error: ConfigError) -> None:
        self.name = name
        self._error = error

    def check(self) -> Sequence[Check]:
        """Say what is wrong, and what to do about it."""
        return [Check.failed("is configured", self._error, fix="correct it in the configuration")]

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name not in vars(Backend):  # of what only some backends have it has nothing
            raise AttributeError(name)
        return self._refuse

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        error = self._error
        raise Misconfigured(error.what, backend=self.name, where=error.where, fix=error.fix) from error


class Places(Mapping[str, Backend]):
    """Every configured place and every fleet by name, built when first asked for.

    Args:
        places: What the configuration says, preferred ones first.
        recorded: Reads what the record says; a configured place of a fleet's name goes first.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        recorded: Callable[[], Recorded] = Recorded,
    ) -> None:
        self._configured = tuple(places)
        self._read = recorded
        self._expected: tuple[Place, ...] = ()
        self._reading = threading.RLock()
        self._lock = threading.RLock()
        self._open: dict[str, tuple[Place, Backend]] = {}
        self._places = _by_name(self._configured, ())
        self.refresh()

    def refresh(self) -> None:
        """Take up what the record says by now; a place that stayed as it was stays built.

        One at a time: whoever read before another wrote would take back what was written.
        """
        with self._reading:
            recorded = self._read()
            found = _by_name(self._configured, (*self._expected, *recorded.fleets))
            places = {name: _holding(place, recorded.held.get(name)) for name, place in found.items()}
            with self._lock:
                for name in [name for name, place in places.items() if place.held is not None]:
                    if not any(isinstance(each, Holder) for each in self._renters(places[name]).values()):
                        del places[name]  # nobody is configured who could reach its machines
                self._places = places
                self._open = {name: one for name, one in self._open.items() if places.get(name) == one[0]}

    def expect(self, places: Iterable[Place]) -> frozenset[str]:
        """Count on places that will be on record, in place of those there; return the names it took."""
        with self._reading:
            self._expected = tuple(places)
            self.refresh()
            configured = {place.name for place in self._configured}
            return frozenset(place.name for place in self._expected) - configured

    def __getitem__(self, name: str) -> Backend:
        with self._lock:
            if name not in self._places:
                fix = "modelyard backend check lists the places; put it back, or delete what was there"
                raise UnknownPlace(f"no place {name!r} is configured any more", fix=fix)
            place = self._places[name]
            if name not in self._open:
                self._open[name] = place, self._built(place)
            return self._open[name][1]

    def _built(self, place: Place) -> Backend:
        if place.held is not None:
            return self._fleet(place)
        try:
            return build(place)
        except ConfigError as error:
            return cast(Backend, Unusable(place.name, error))  # one of many: the others are as they were

    def fleet(self, name: str) -> Place | None:
        """Return a fleet as the record has it; None for what is configured, or is not there."""
        is_configured = any(place.name == name for place in self._configured)
        return None if is_configured else self._places.get(name)

    def _renters(self, place: Place) -> Mapping[str, Backend]:
        """Return the configured places that a fleet rents from: those it names, or all."""
        wanted = place.options["backends"]
        return {p.name: self[p.name] for p in self._configured if not wanted or p.name in wanted}

    def _fleet(self, place: Place) -> Backend:
        renters = self._renters(place)
        first = next(each for each in renters.values() if isinstance(each, Holder))
        return first.fleet(
            place.name, machines=place.held or (), peers=renters, blocks=place.options["blocks"],
            held=place.wishes.get("held", {}), env=place.options["env"],
        )  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def price_usd_hour(self, name: str, accelerator: str | None) -> float:
        """Return what the owner counts for an hour of this accelerator there, 0 where nothing is said."""
        return self._places[name].prices.get(accelerator or "machine", 0.0)

    def is_required(self, name: str) -> bool:
        """Return whether the user configured this place, rather than we guessed it."""
        return self._places[name].required

    def is_open_to(self, name: str, project: str | None) -> bool:
        """Return whether a project may use a place; None is whoever sees all of them."""
        return project is None or self._places[name].project in (None, project)


def _by_name(configured: Sequence[Place], fleets: Sequence[Place]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for place in (*configured, *fleets):
        found.setdefault(place.name, place)
    return found


def _holding(place: Place, held: Held | None) -> Place:
    return replace(place, wishes={**place.wishes, "held": dict(held)}) if held else place


def fleet_place(spec: Fleet, *, project: str | None = None) -> Place:
    """Return the place that a fleet of one's own machines is; its hosts are reached over SSH.

    >>> place = fleet_place(Fleet(name="rack", ssh_config={"user": "ops", "hosts": ["a"]}))
    >>> place.name, place.type, place.options["hosts"], place.options["blocks"]
    ('rack', 'ssh', [{'hostname': 'a'}], 1)
    """
    config = spec.ssh_config
    assert config is not None  # others are refused when they are planned
    hosts = [host.model_dump(exclude_none=True) for host in config.hosts]
    shared = config.model_dump(exclude_none=True, exclude={"hosts", "config_file", "network"})
    options: dict[str, Any] = {**shared, "hosts": hosts, "blocks": spec.blocks}
    if spec.env:
        options["env"] = {name: _value(spec.name, name, value) for name, value in spec.env.items()}
    if config.network:
        options["network"] = str(ipaddress.ip_network(config.network, strict=False))
    if config.config_file:
        options["ssh_config"] = config.config_file
    return Place(spec.name, "ssh", options, project=project)


def rented_place(spec: Fleet, machines: Sequence[HeldMachine], *, project: str | None = None) -> Place:
    """Return the place that a fleet of rented machines is, with those that are up.

    >>> place = rented_place(Fleet(name="pool", nodes=2, backends=["aws"]), ())
    >>> place.options["backends"], place.held
    (('aws',), ())
    """
    env = {name: _value(spec.name, name, value) for name, value in spec.env.items()}
    options = {"backends": spec.backends, "blocks": spec.blocks, "env": env}
    return Place(spec.name, "fleet", options, project=project, held=tuple(machines))


def _value(fleet: str, name: str, value: str | None) -> str:
    """Return the value of a fleet's variable; that of a bare one is kept as a secret of the fleet's."""
    return "${{ secrets." + f"{fleet}/{name}" + " }}" if value is None else value


def build(place: Place) -> Backend:
    """Return the backend of one place; nothing is touched yet.

    Raises:
        ConfigError: its type is not installed, or it does not know one of the options.
    """
    point = _point(place.type)
    if point is None:
        raise ConfigError(f"backend {place.name!r}: no type {place.type!r} is installed")
    try:
        make = point.load()
    except ImportError as error:
        raise ConfigError(
            f"backend {place.name!r} needs a package that is not installed: {error.name}",
            fix=f"pip install 'modelyard[{place.type}]'",
        ) from error
    known = [p for p in inspect.signature(make).parameters if p not in ("self", "name")]
    for option in place.options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            raise ConfigError(
                f"backend {place.name!r} has no option {option!r}",
                fix=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}",
            )
    wishes = {option: value for option, value in place.wishes.items() if option in known}
    backend: Backend = make(place.name, **{**place.options, **wishes})
    return backend
