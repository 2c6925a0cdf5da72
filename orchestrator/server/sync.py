"""Pull: a repository's specs become the desired state, commit after commit."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator.api import Plans
from orchestrator.apply import NOTHING_LOST, Consent, Plan, RunPlan, Scope
from orchestrator.apply.lock import Lock, by_lock, models_of, read_lock
from orchestrator.catalog.hardware import known_names
from orchestrator.errors import ModelyardError, Problem, SpecError, UsageError
from orchestrator.frozen import frozen
from orchestrator.reconcile import RunState, Wanted
from orchestrator.reconcile.steps import by_hand
from orchestrator.server import sops
from orchestrator.server.carrying import carry_out, named_in_audit
from orchestrator.server.duty import Duty
from orchestrator.server.git import Checkout, Source
from orchestrator.server.idle import IDLE
from orchestrator.server.site import Site
from orchestrator.spec.load import Document, load
from orchestrator.store.values import MAIN
from orchestrator.wire import SyncState, SyncStatus, outcome_of

PREFIX = "MODELYARD_SYNC_"
"""Variables of the server that specs of a repository may name begin so; they see no other."""
WEBHOOK_SECRET = "MODELYARD_SYNC_WEBHOOK_SECRET"
MOST_S = 3_600.0
_STOPS = (IDLE, by_hand(Wanted.STOP))
"""How the causes of events begin that ask a run to stop."""
KEPT = 20
"""Commits whose status is remembered."""


@frozen
class Wish:
    """What is synced, how often, and what it may lose."""

    source: Source
    interval_s: float = 60.0
    set_name: str = "sync"
    prune: bool = True
    signed: bool = False
    consent: Consent = NOTHING_LOST
    project: str = MAIN

    def __post_init__(self) -> None:
        if self.interval_s < 1:
            what = "--interval: a repository is looked at once a second at most"
            raise UsageError(what, fix="write 10s or 1m, for example")


class Syncer(Duty):
    """Applies a repository again and again, from a thread of its own.

    Of several servers on one record the first does it.

    Args:
        site: The server's share of the world.
        wish: What is synced.
        root: Where the work tree is kept.
    """

    called = "sync"

    def __init__(self, site: Site, wish: Wish, root: Path) -> None:
        super().__init__(site)
        self._wish = wish
        self._checkout = Checkout(wish.source, root, signed=wish.signed)
        self._asked = self._hooked = False
        self._failed: str | None = None
        """The commit that failed last, "" where it could not be fetched, None where none did."""
        self._again_at = site.clock()
        self._key = f"sync/{hashlib.sha256(str(wish.source).encode()).hexdigest()[:16]}"

    @property
    def project(self) -> str:
        """Whose runs it makes."""
        return self._wish.project

    @property
    def look_s(self) -> float:
        """How long to wait after a turn that was another server's, in seconds."""
        return self._wish.interval_s

    def history(self) -> list[SyncStatus]:
        """Return what became of the last commits, newest first."""
        kept = json.loads(self._site.store.access.note(self._key) or "[]")
        return [SyncStatus.model_validate(each) for each in kept]

    @property
    def _secret(self) -> str:
        return self._site.environ.get(WEBHOOK_SECRET, "")

    def seal(self) -> hmac.HMAC:
        """Return what takes the body of a webhook, to be held against its signature."""
        return hmac.new(self._secret.encode(), digestmod=hashlib.sha256)

    def is_from_the_host(self, headers: Mapping[str, str], sealed: str) -> bool:
        """Return whether a webhook comes from who knows the secret: signed as GitHub does, or as GitLab."""
        secret = self._secret
        if not secret:
            return False
        signed = f"sha256={sealed}"
        given, plain = headers.get("x-hub-signature-256", ""), headers.get("x-gitlab-token", "")
        return hmac.compare_digest(signed.encode(), given.encode()) or hmac.compare_digest(
            secret.encode(), plain.encode()
        )

    def once(self, *, asked: bool = False) -> SyncStatus:
        """Fetch and apply; return what became of it, which is remembered.

        What ended by itself since a commit was applied starts again only where a person ``asked``.
        """
        last = next(iter(self.history()), None)
        commit = ""  # a repository that cannot be fetched is no commit's fault
        try:
            with self._checkout.alone():
                commit = self._checkout.update()
                changed, left = self._apply(commit, again=asked or not self._is_applied(commit))
            status = self._status(commit, "applied", changed=changed, left=left)
        except (ModelyardError, OSError) as error:  # a full disk is one of the latter
            again = last is not None and (last.state, last.commit) == ("failed", commit)
            failures = last.failures + 1 if last and again else 1
            status = self._status(commit, "failed", message=self._said(error), failures=failures)
            if self.is_closed and not commit:
                return status  # git was told to end: that is no news of the repository
        if last is None or status.changed or _news(last) != _news(status):
            self._remember(status)
        return status

    def pause_s(self, status: SyncStatus) -> float:
        """Return how long to wait: the interval, and after failures in a row ever longer."""
        return min(MOST_S, self._wish.interval_s * 2.0 ** min(status.failures, 12))

    def _said(self, error: ModelyardError | OSError) -> str:
        """Return an error with paths as the repository has them."""
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return said.replace(f"{self._checkout.root}/", "")

    def _is_applied(self, commit: str) -> bool:
        """Return whether the last commit that could be fetched is this one, and was applied."""
        last = next((each for each in self.history() if each.commit), None)
        return last is not None and (last.commit, last.state) == (commit, "applied")

    def _apply(self, commit: str, *, again: bool) -> tuple[list[str], list[str]]:
        """Carry a commit out; return the runs that it changed, and those that ended and are left so.

        ``again`` starts the latter again instead.
        """
        wish, api = self._wish, self._site.api(self._wish.project)
        documents = load(
            [str(self._checkout.folder)], known_accelerators=known_names(), env=self._variables()
        )
        problems = [problem for document in documents for problem in self._strays(document)]
        if problems:
            raise SpecError(problems)
        scope = Scope(wish.set_name, wish.prune)
        models = {
            name: model
            for path, of in by_lock([str(self._checkout.folder)], documents).items()
            for name, model in models_of(of, read_lock(path) or Lock()).items()
        }
        plans = api.plan(documents, scope=scope, models=models)
        left = [] if again else [plan.name for plan in plans if self._ended_by_itself(plan)]
        plans = tuple(plan for plan in plans if plan.name not in left or not isinstance(plan, RunPlan))
        # what was encrypted reaches no text that specs are made of, as variables do by ``${{ env.X }}``
        variables = sops.values(self._checkout.folder, environ=self._site.environ) | self._variables()
        if all(plan.action == "unchanged" for plan in plans):
            return self._renew(plans, variables), left
        try:
            carry_out(self._site, wish.project, plans, wish.consent, variables, message=f"commit {commit}")
        except ModelyardError as error:
            self._note(plans, commit, outcome_of(error))
            raise
        self._note(plans, commit, "200")
        renewed = self._renew(plans, variables)  # only now: a commit that is refused changes nothing
        api.finish_deletions(plans)
        return [plan.name for plan in plans if plan.action != "unchanged" or plan.name in renewed], left

    def _note(self, plans: Plans, commit: str, outcome: str) -> None:
        """Write a line of the audit log: a commit changes runs as a call does."""
        subject, hashes = named_in_audit(plans)
        self._site.audit.note(
            f"commit {commit}", "sync", outcome, address=str(self._wish.source), project=self._wish.project,
            subject=subject, spec_hash=hashes,
        )  # fmt: skip

    def _ended_by_itself(self, plan: Plan) -> bool:
        """Return whether a plan would only start again what failed, or what its own policy stopped."""
        if not isinstance(plan, RunPlan) or plan.run is None or plan.action != "rerun" or plan.changes:
            return False
        if plan.run.spec_hash != plan.spec_hash:
            return False
        return plan.run.state is RunState.FAILED or self._was_idle(plan.name)

    def _was_idle(self, run: str) -> bool:
        """Return whether a run that was asked to stop was so for its own policy."""
        after, last = 0, ""
        while page := self._site.store.events(run, after=after, project=self._wish.project):
            after = page[-1][0]
            last = next((event.cause for _, event in reversed(page) if event.cause.startswith(_STOPS)), last)
        return last.startswith(IDLE)

    def _renew(self, plans: Plans, variables: Mapping[str, str]) -> list[str]:
        """Keep the new values of runs that are otherwise unchanged, for their next start; return those."""
        kept, renewed = self._site.store.secrets.of(self._wish.project), []
        there = {each.name for each in kept.list()}
        for plan in (p for p in plans if isinstance(p, RunPlan) and p.action == "unchanged"):
            for name in (n for n, value in plan.spec.env.items() if value is None and n in variables):
                key = f"{plan.name}/{name}"
                if key in there and kept.get(key) != variables[name]:
                    kept.set(key, variables[name], now=self._now(), given_to=plan.name)
                    renewed.append(plan.name)
        return list(dict.fromkeys(renewed))

    def _variables(self) -> dict[str, str]:
        """Return what specs may name: variables under the prefix, without it."""
        return {
            name.removeprefix(PREFIX): value
            for name, value in self._site.environ.items()
            if name.startswith(PREFIX) and name != WEBHOOK_SECRET
        }

    def _strays(self, document: Document) -> Iterator[Problem]:
        """Yield problems with paths that lead out of the repository."""
        root = self._checkout.root.resolve()
        spec = document.spec
        for field in ("files", "repos"):
            for at, part in enumerate(getattr(spec, field, ())):
                if part.local_path and not Path(part.local_path).resolve().is_relative_to(root):
                    what = f"{part.local_path} lies outside of the repository"
                    yield document.problem(f"{field}[{at}]", what, "commit it beside the specs")

    def _status(
        self,
        commit: str,
        state: SyncState,
        *,
        changed: Sequence[str] = (),
        message: str = "",
        failures: int = 0,
        left: Sequence[str] = (),
    ) -> SyncStatus:
        return SyncStatus(
            source=str(self._wish.source), commit=commit, state=state, at=self._site.clock(),
            message=message, changed=list(changed), failures=failures, left=list(left),
        )  # fmt: skip

    def _remember(self, status: SyncStatus) -> None:
        """Put a status on top; a commit's last word replaces the one before, and so does a fetch's."""
        older = [each for each in self.history() if each.commit not in ("", status.commit)]
        if not status.changed:  # it was applied before: keep what it changed then
            same = next((each for each in self.history() if each.commit == status.commit), None)
            status = status.model_copy(update={"changed": same.changed if same else []})
        kept = [each.model_dump(mode="json") for each in [status, *older][:KEPT]]
        self._site.store.access.remember(self._key, json.dumps(kept), now=self._now())

    def _now(self) -> datetime:
        return self._site.clock()

    def duty(self) -> float:
        """Fetch and apply, unless that is to wait; return how long to wait for the next turn, in seconds."""
        (asked, hooked), self._asked, self._hooked = (self._asked, self._hooked), False, False
        if not (asked or hooked) and self._is_put_off():
            return self._wish.interval_s
        status = self.once(asked=asked)
        self._again_at = self._now() + timedelta(seconds=self.pause_s(status))
        self._failed = status.commit if status.state == "failed" else None
        return self._wish.interval_s if self._failed is not None else self.pause_s(status)

    @property
    def is_ours(self) -> bool:
        """Whether the next turn is this server's: the first's, or that of whichever was told to sync now."""
        return self._asked or self._hooked or super().is_ours

    def end(self) -> None:
        """Take no further turn, and end what git does now."""
        super().end()
        self._checkout.end()

    def poke(self) -> None:
        """Sync now, whatever the clock says, and however often it has failed."""
        self._hooked = True
        super().poke()

    def ask(self) -> None:
        """Sync now, and also start again what ended by itself."""
        self._asked = True
        super().poke()

    def _is_put_off(self) -> bool:
        """Return whether what failed last is waited for: its time has not come, and nothing is newer."""
        left_s = (self._again_at - self._now()).total_seconds()
        if self._failed is None or not 0 < left_s <= MOST_S:  # more is left where the clock was set back
            return False
        newest = self._checkout.newest()
        return newest in (None, self._failed) if self._failed else newest is None


def _news(status: SyncStatus) -> tuple[object, ...]:
    return status.commit, status.state, status.message, status.failures, status.left
