"""Fleets and their hosts, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from orchestrator.api import FleetView
from orchestrator.backend import Host
from orchestrator.render.plans import price_text
from orchestrator.render.table import plural, table, to_json
from orchestrator.units import format_bytes

_ORDER = ("ready", "booting", "draining", "cordoned", "unwell", "silent")


def fleets_text(fleets: Sequence[FleetView]) -> str:
    """Return one line per fleet: how many hosts in which state, and what of them is free."""
    if not fleets:
        return "no fleets"
    header = ["FLEET", "FROM", "HOSTS", "STATE", "PRICE", "ACCELERATORS FREE", "RUNS"]
    return table(header, [_fleet_cells(fleet) for fleet in fleets])


def _fleet_cells(fleet: FleetView) -> list[str]:
    states: Counter[str] = Counter(host.state for host in fleet.hosts)
    runs = {run for there in fleet.on.values() for run in there}
    said = ", ".join(f"{states[state]} {state}" for state in _ORDER if states[state])
    return [
        fleet.name, "a spec" if fleet.applied else "the configuration",
        f"{len(fleet.hosts)} of {fleet.nodes}" if fleet.nodes else str(len(fleet.hosts)), said or "-",
        price_text(price_usd_hour(fleet.hosts)) if fleet.nodes else "-",
        accelerators_text(fleet.hosts), ", ".join(sorted(runs)) or "-",
    ]  # fmt: skip


def accelerators_text(hosts: Sequence[Host]) -> str:
    """Return how many accelerators of each kind are free on hosts that are ready, of how many.

    >>> from orchestrator.backend import HostDevice
    >>> two = (HostDevice("a", "L4", held=True), HostDevice("b", "L4"))
    >>> accelerators_text([Host("rack-1", "ready", devices=two)])
    '1 of 2 × L4'
    """
    free: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for host in hosts:
        for device in host.devices:
            every[device.name] += 1
            free[device.name] += host.state == "ready" and not device.held and not device.ill
    return ", ".join(f"{free[name]} of {count} × {name}" for name, count in sorted(every.items())) or "-"


def hosts_text(fleet: FleetView) -> str:
    """Return one line per host of a fleet, and below them what is wrong with which, with the fix."""
    header = ["HOST", "STATE", "CPU FREE", "MEMORY FREE", "DISK", "ACCELERATORS FREE", "BLOCKS", "RUNS"]
    rows = [_host_cells(host, fleet.on.get(host.name, ())) for host in fleet.hosts]
    if not fleet.nodes:
        head = f"fleet {fleet.name}: {plural(len(rows), 'host')}"
        return "\n".join([head, table(header, rows), *troubles(fleet)])
    rows = [[*cells, str(host.rent or "-")] for cells, host in zip(rows, fleet.hosts, strict=True)]
    price = price_text(price_usd_hour(fleet.hosts))
    head = f"fleet {fleet.name}: {len(rows)} of {fleet.nodes} machines, {price}"
    waits = [f"waits: {fleet.note}"] if fleet.note else []
    shown = [table([*header, "RENTED"], rows)] if rows else []
    return "\n".join([head, *shown, *troubles(fleet), *waits])


def price_usd_hour(hosts: Sequence[Host]) -> float:
    """Return what rented machines cost together.

    >>> from orchestrator.backend import Rent
    >>> price_usd_hour([Host("i-1", "ready", rent=Rent("g6", price_usd_hour=0.8)), Host("a", "ready")])
    0.8
    """
    return sum(host.rent.price_usd_hour for host in hosts if host.rent)


def _host_cells(host: Host, runs: Sequence[str]) -> list[str]:
    if host.state in ("silent", "booting"):
        return [host.name, host.state, "-", "-", "-", "-", "-", ", ".join(runs) or "-"]
    return [
        host.name, host.state, f"{host.free_cpu:g} of {host.cpu:g}",
        f"{format_bytes(host.free_memory_bytes)} of {format_bytes(host.memory_bytes)}",
        format_bytes(host.disk_bytes), accelerators_text([host]),
        f"{host.blocks - host.blocks_held} of {host.blocks}" if host.blocks else "-",
        ", ".join(runs) or "-",
    ]  # fmt: skip


def troubles(fleet: FleetView) -> Iterator[str]:
    """Yield what is wrong with which host, and what to do about it."""
    for host in fleet.hosts:
        if host.why:
            yield host.why if f"'{host.name}'" in host.why else f"{host.name}: {host.why}"
            if host.fix:
                yield f"  fix     {host.fix}"


def fleets_json(fleets: Sequence[FleetView]) -> str:
    """Return fleets with their hosts as ``modelyard/fleets/v1``."""
    return to_json("modelyard/fleets/v1", {"fleets": [_fleet_object(fleet) for fleet in fleets]})


def _fleet_object(fleet: FleetView) -> dict[str, object]:
    hosts = [{**asdict(host), "runs": list(fleet.on.get(host.name, ()))} for host in fleet.hosts]
    found: dict[str, object] = {"name": fleet.name, "applied": fleet.applied, "hosts": hosts}
    if fleet.nodes:
        found |= {
            "nodes": fleet.nodes, "price_usd_hour": price_usd_hour(fleet.hosts), "waits": fleet.note,
        }  # fmt: skip
    return found
