"""A place that only pretends: scripted, deterministic under an injected clock, fast.

Nothing runs. What a launch will do is a :class:`Script`, and what an instance looks like is a
function of its script and the time, so that a test moves a clock instead of waiting::

    clock = Hand()
    sim = Sim(script={"chat-*": Script(boot_s=30, ready_s=60)}, clock=clock)
    sim.start(launch, secrets={}, progress=print)
    clock.advance(30)

With ``state`` the world is a journal on disk, one JSON line per change, which several processes
may share and which a killed one leaves whole: crash tests run on it.
"""

from __future__ import annotations

from backends.sim.cluster import SimCluster
from backends.sim.host import Call, Sim, default_offers
from backends.sim.script import Hand, Refuse, Script

__all__ = ["Call", "Hand", "Refuse", "Script", "Sim", "SimCluster", "default_offers"]
