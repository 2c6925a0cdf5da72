"""How long plans take: in this process when warm, and as commands when cold.

``python -m tests.benchmarks.planner`` prints a table with the goals. Times are CPU-seconds, the
least of several runs, so that a busy machine disturbs little.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.apply import plan_documents
from orchestrator.backend import Can, Offer
from orchestrator.catalog import accelerators, known_names, model, prices
from orchestrator.planner.demand import AcceleratorDemand, Demand, Span
from orchestrator.planner.index import OfferIndex
from orchestrator.planner.plan import place
from orchestrator.planner.question import Question
from orchestrator.planner.serve import place_model
from orchestrator.render.table import table
from orchestrator.spec.load import load
from orchestrator.spec.models import Model, Traffic
from orchestrator.units import GIB
from tests.places import world

ABLE = frozenset(Can)
REGIONS = [f"region-{n}" for n in range(40)]
MANY = 50_000
SERVICES = 1_000
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SERVICE_70B = Path(__file__).parents[2] / "configs" / "services" / "llama-70b.yaml"
TASK = "type: task\nname: hello\nimage: python:3.12-slim\ncommands: [echo hi]\nresources: {cpu: 1}\n"
SERVICE = """\
type: service
name: chat-{n}
model: {{id: {id}, context: {context}}}
traffic: {{concurrency: {concurrency}}}
env: [HF_TOKEN]
"""
MODELS = (LLAMA, "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "google/gemma-3-27b-it", "openai/gpt-oss-20b")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    goal: float
    unit: str

    def cells(self) -> list[str]:
        """Return the line as text."""
        kept = "yes" if self.measured <= self.goal else "no"
        return [self.what, f"{self.measured:.3g} {self.unit}", f"{self.goal:g} {self.unit}", kept]


def synthetic(count: int) -> list[Offer]:
    """Return that many offers of catalog accelerators and plain machines, the same ones each time."""
    draw = random.Random(1)
    devices = list(accelerators().values())
    found = []
    for n in range(count):
        device = draw.choice(devices) if n % 4 else None
        many = draw.choice((1, 2, 4, 8)) if device else 0
        found.append(
            Offer(
                draw.choice(("aws", "gcp", "azure", "onprem")), f"type-{n % 900}", cpu=float(4 * (many or 1)),
                memory_bytes=16 * GIB * (many or 1), region=draw.choice(REGIONS),
                accelerator=device.name if device else None, vendor=device.vendor if device else None,
                count=many, vram_bytes=device.visible_bytes if device else 0,
                compute_capability=device.capability if device else None, spot=draw.random() < 0.3,
                price_usd_hour=round(draw.uniform(0.1, 40), 3),
            )
        )  # fmt: skip
    return found


def priced() -> list[Offer]:
    """Return the catalog's price rows as offers."""
    known = accelerators()
    return [
        Offer(
            "cloud", row.instance_type, cpu=row.cpu or 8, memory_bytes=row.memory_bytes or 64 * GIB,
            region=row.region, accelerator=row.accelerator, vendor=known[row.accelerator].vendor,
            count=row.count, vram_bytes=known[row.accelerator].visible_bytes,
            compute_capability=known[row.accelerator].capability,
            price_usd_hour=row.on_demand_usd_hour or row.spot_usd_hour or 0.0,
        )
        for row in prices()
        if row.accelerator
    ]  # fmt: skip


def least_s(act: Callable[[], object], *, times: int = 10) -> float:
    """Return the least CPU-seconds that ``act`` took."""
    took = []
    for _ in range(times):
        start = time.process_time()
        act()
        took.append(time.process_time() - start)
    return min(took)


def warm() -> Iterator[Row]:
    """Yield what plans take in a process that has planned before."""
    places = dict.fromkeys(("cloud", "aws", "gcp", "azure", "onprem"), ABLE)
    many = OfferIndex(synthetic(MANY))
    gpu = AcceleratorDemand(frozenset({"H100-80GB"}), count=Span(8, 8))
    plain = Demand(cpu=Span(8), accelerator=gpu, places=places, max_price_usd_hour=20.0)
    asked = question()
    free = Demand(places=places)

    def serve(index: OfferIndex) -> float:
        return 1e3 * least_s(lambda: place_model(asked, free, index, accelerators(), what="service"))

    took = 1e3 * least_s(lambda: place(plain, many, what="task"))
    yield Row(f"place a task over {MANY:,} offers", took, 5, "ms")
    yield Row("peak memory so far", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 150, "MB")
    yield Row("place a model over the price list", serve(OfferIndex(priced())), 20, "ms")
    yield Row("place a model over every accelerator, 1 to 8", serve(OfferIndex(world().offers())), 20, "ms")
    yield Row(f"place a model over {MANY:,} offers", serve(many), 20, "ms")


def question() -> Question:
    """Return what is asked in the warm rows."""
    facts = model(LLAMA)
    assert facts is not None
    secrets = (("HF_TOKEN", "HF_TOKEN"),)
    return Question(facts, Model(id=LLAMA, context=8192), Traffic(), secrets=secrets)


def folder() -> Row:
    """Return what loading and planning a folder of services takes."""
    offers = tuple(priced())
    here = replace(world(), offers=lambda: offers)
    with tempfile.TemporaryDirectory() as name:
        for n in range(SERVICES):
            text = SERVICE.format(
                n=n, id=MODELS[n % 5], context=8192 << (n % 3), concurrency=4 << (n % 4),
            )  # fmt: skip
            Path(name, f"chat-{n}.yaml").write_text(text)
        start = time.process_time()
        documents = load([name], known_accelerators=known_names(), env={"HF_TOKEN": "x"})
        plan_documents(documents, here)
        return Row(f"plan {SERVICES:,} services in one folder", time.process_time() - start, 3, "s")


def cold() -> Iterator[Row]:
    """Yield what commands take from a standing start, their modules compiled."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        task = home / "task.yaml"
        task.write_text(TASK)
        places = home / "config.yaml"
        places.write_text(f"backends: [{{type: sim, state: {home / 'sim'}}}]\n")
        commands = (
            ("--help", ["--help"], 0.15),
            ("size --help", ["size", "--help"], 0.15),
            ("plan --help", ["plan", "--help"], 0.15),
            ("size MODEL", ["size", LLAMA], 0.30),
            ("plan of a small task", ["plan", "-f", str(task), "--config", str(places)], 0.30),
            ("render of a 70B service", ["render", "-f", str(SERVICE_70B), "--to", "kubernetes"], 0.40),
        )
        for what, words, goal in commands:
            yield Row(f"modelyard {what}", command_s(words, home), goal, "s")


def command_s(words: list[str], home: Path, *, times: int = 7) -> float:
    """Return the least CPU-seconds of a command with its own home; the first run compiles."""
    environment: Mapping[str, str] = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPYCACHEPREFIX": str(home / "compiled"),
        "MODELYARD_DATABASE_URL": f"sqlite:///{home / 'state.db'}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    took = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words],
            check=True, env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


def main() -> None:
    """Print the table."""
    rows = [*warm(), folder(), *cold()]
    print(table(("WHAT", "MEASURED", "GOAL", "KEPT"), [row.cells() for row in rows]))


if __name__ == "__main__":
    main()
