"""What one of several servers on a record does again and again, for all of them."""

from __future__ import annotations

from abc import abstractmethod

from orchestrator.errors import ModelyardError
from orchestrator.server.routine import Routine
from orchestrator.server.site import Site


class Duty(Routine):
    """A routine that of several servers on one record the first has; what goes wrong is complained of.

    Args:
        site: The server's share of the world.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site

    @property
    @abstractmethod
    def look_s(self) -> float:
        """How long to wait after a turn that was another server's, or that failed, in seconds."""

    @abstractmethod
    def duty(self) -> float:
        """Do what there is to do now; return how long to wait for the next turn, in seconds."""

    @property
    def is_ours(self) -> bool:
        """Whether the next turn is this server's."""
        return self._site.peers[0] == self._site.owner

    def turn(self) -> float:
        """Do it where it is this server's; return how long to wait, in seconds."""
        if self.is_ours:
            try:
                return self.duty()
            except ModelyardError as error:
                self._site.complain(f"{self.called}: {error.what}")
        return self.look_s
