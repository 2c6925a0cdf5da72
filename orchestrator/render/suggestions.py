"""A suggested document with what changed on the way, and what the planner says of its accelerators."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.apply import RunPlan
from orchestrator.apply.imagined import UNPRICED_USD_HOUR
from orchestrator.apply.suggesting import Offered, Suggestion, devices
from orchestrator.errors import ModelError, ModelyardError, NothingFits, SpecError
from orchestrator.render.plans import memory_text, price_text
from orchestrator.units import GIB, format_usd


def suggestion_text(suggestion: Suggestion, *, commented: bool) -> str:
    """Return the document with all that is said of it in comments above.

    With ``commented`` the document is one too, so that it can stand in a file beside the original
    without being applied. What could not be suggested is its reasons alone.
    """
    lines = [f"# {line}" for line in _above(suggestion)]
    body = suggestion.text.splitlines()
    return "\n".join([*lines, *(f"# {line}".rstrip() if commented else line for line in body)]) + "\n"


def _above(suggestion: Suggestion) -> Iterator[str]:
    spec = suggestion.of.spec
    if not suggestion.text:
        yield f"{spec.type} {spec.name!r} runs {suggestion.engine}, and no suggestion could be made:"
    else:
        yield f"{spec.type} {spec.name!r} runs {suggestion.engine}: as a model that is sized and planned here"
    if suggestion.offered:
        yield from _offered(suggestion.offered)
    for each in suggestion.says:
        yield f"  changed   {each}"


def _offered(offered: Offered) -> Iterator[str]:
    if offered.asked:
        yield f"  asked     {offered.asked}"
    least, taken, free = offered.least, offered.taken, offered.free
    if isinstance(least, ModelyardError):
        yield from _why(least)
    else:
        yield f"  needs     {_devices(least)}{_compared(least, offered)}"
        yield from _how(least)
    if isinstance(taken, RunPlan) and isinstance(least, RunPlan) and _kind(taken) != _kind(least):
        yield f"  plan      {_devices(taken)}, {_merit(taken)}"
    if isinstance(free, RunPlan) and not (isinstance(taken, RunPlan) and _kind(free) == _kind(taken)):
        yield f"  any kind  {_devices(free)}, {_merit(free)}"
        if not isinstance(least, RunPlan):
            yield from _how(free)


def _merit(plan: RunPlan) -> str:
    choice = plan.placed.choices[0] if plan.placed else None
    usd = choice.usd_per_million_tokens if choice else None
    if choice and choice.price_usd_hour >= UNPRICED_USD_HOUR:
        return "the catalog has no price of it"
    if plan.trained:
        return "the least for the whole"
    return f"${format_usd(usd, 3)}/M tokens" if usd else "the least an hour"


def _why(error: ModelyardError) -> Iterator[str]:
    if isinstance(error, NothingFits):
        reasons = ", ".join(f"{each.offers} {each.reason}" for each in error.refused[:4])
        yield f"  needs     more than any machine has that was asked for: {error.what}"
        if error.needs:
            yield f"            {error.needs}"
        if reasons:
            yield f"            {reasons}"
    elif isinstance(error, SpecError):
        for problem in error.problems:
            yield f"  refused   {problem.what}" + (f": {problem.fix}" if problem.fix else "")
    else:
        yield (
            f"  needs     not known: {error.what}"
            if isinstance(error, ModelError)
            else f"  refused   {error.what}"
        )
    if error.fix:
        yield f"  fix       {error.fix}"


def _kind(plan: RunPlan) -> tuple[str, int]:
    choice = plan.placed.choices[0] if plan.placed else None
    return (choice.offer.accelerator or "", devices(plan)) if choice else ("", 0)


def _devices(plan: RunPlan) -> str:
    assert plan.placed
    choice = plan.placed.choices[0]
    name = choice.offer.accelerator or "no accelerator"
    count = f"{devices(plan)} × " if choice.offer.accelerator else ""
    usd = choice.price_usd_hour
    return f"{count}{name} at {price_text(usd)}" if usd < UNPRICED_USD_HOUR else f"{count}{name}"


def _compared(plan: RunPlan, offered: Offered) -> str:
    if offered.asked_count is None:
        return ""
    needed = devices(plan)
    if needed == offered.asked_count:
        return ", as many as were asked for"
    fewer = needed < offered.asked_count
    return f", {abs(offered.asked_count - needed)} {'fewer' if fewer else 'more'} than were asked for"


def _how(plan: RunPlan) -> Iterator[str]:
    if plan.served:
        job = plan.served.job
        held = f"{job.context:,} tokens of context × {job.concurrency} requests at once"
        yield f"  because   {job.precision}, {held}: {memory_text(plan.served.size)}"
    elif plan.trained:
        trained, device = plan.trained, plan.trained.size.device
        kind = "every weight" if trained.adapter == "none" else trained.adapter
        cut = f"{trained.candidate.job.sequence_length:,} tokens a sequence, batch {trained.batch_size}"
        memory = f"{device.peak_bytes / GIB:.1f} of {device.visible_bytes / GIB:.1f} GiB a device"
        yield f"  because   {trained.method}, {kind}, {cut}: {memory}"
    yield from (f"  note      {note}" for note in plan.notes)
