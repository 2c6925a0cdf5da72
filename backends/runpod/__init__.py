"""RunPod: a pod, which is a container on somebody's GPU, that is rented for each launch."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event as Flag
from typing import Any, ClassVar

from backends.runpod.pods import URL, Line, Pods
from backends.runpod.shapes import DEPLOYMENT, ENDED, KEY, LABELS, NAMESPACE, Pod, asked_for, labels_text
from backends.runpod.wrapper import MOST_FILE_BYTES, Told, split, start_command
from backends.vm.cooling import Cooling, where_of
from backends.vm.once import made_once
from backends.vm.options import duration_s, size_bytes, state_folder, words
from backends.vm.port import KeySpent
from backends.vm.rest import Gone
from backends.vm.shelf import Shelf
from orchestrator.backend import (
    Can,
    Check,
    Instance,
    Launch,
    LogLine,
    Machine,
    Offer,
    Phase,
    Progress,
    Reason,
    Volume,
)
from orchestrator.errors import (
    BackendError,
    Busy,
    ConfigError,
    NoCapacity,
    NotFound,
    Rejected,
    Unreachable,
)

AT_ONCE = 16
"""Pods that are looked at at the same time."""

TAIL = 20
"""Lines at the end of a pod's output that are read to see whether its program has ended."""

MOST_ENV = 50
"""Variables of a pod (docs.runpod.io/pods/templates/environment-variables)."""

WATCH_S = 5.0
STOP_POLL_S = 0.5


class Runpod:
    """Runs each launch in a pod of RunPod's that is rented for it.

    Args:
        name: The backend's name in the configuration.
        clouds: Where pods are rented: ``secure`` (RunPod's own data centres), ``community`` or both.
        api_key_file: The file that holds the API key; default: the variable ``RUNPOD_API_KEY``.
        public_ports: Whether launches may have ports: RunPod opens them to the whole internet.
        disk: The size of a pod's disk, such as ``50GB``.
        deployment: Tells our pods from others' of the account, and has to be the same for all that share
            a record; default: one is made for this user.
        namespace: Whose launches these are.
        boot_timeout: How long a pod may take until its container runs.
        quiet_s: After how many seconds without a line what came of a pod's output is taken for all.
        endpoint_url: Another address of the API.

    Raises:
        ConfigError: an option has no such value.
    """

    able: ClassVar[frozenset[Can]] = frozenset({Can.IMAGES, Can.RENT})

    def __init__(
        self,
        name: str = "runpod",
        *,
        clouds: Sequence[str] = ("secure",),
        api_key_file: str | None = None,
        public_ports: bool = False,
        disk: str = "50GB",
        deployment: str | None = None,
        namespace: str = "modelyard",
        boot_timeout: str = "30m",
        quiet_s: float = 1.5,
        endpoint_url: str = URL,
    ) -> None:
        wanted = words(name, "clouds", clouds, least=1)
        if unknown := sorted(set(wanted) - {"secure", "community"}):
            raise ConfigError(f"backend {name!r}: clouds: expected secure and community, got {unknown[0]!r}")
        self.name = name
        self.can = self.able | ({Can.PORTS} if public_ports else frozenset())
        self._state = state_folder(name)
        self._shelf = Shelf(self._state, namespace, backend=name)
        self._cooling = Cooling(self._state / "sold-out.json")
        self._given_deployment = deployment
        self._namespace = namespace
        self._boot_s = duration_s(name, "boot_timeout", boot_timeout)
        self._quiet_s = quiet_s
        self._over: dict[str, Told] = {}
        self._pods = Pods(
            name, api_key_file=api_key_file, clouds=wanted,
            disk_gb=-(-size_bytes(name, "disk", disk) // 10**9), url=endpoint_url,
        )  # fmt: skip

    # -- offers ----------------------------------------------------------------------------------

    def offers(self) -> Sequence[Offer]:
        """Return every kind of pod in every data centre; what was sold out a moment ago has none."""
        return [
            replace(one, available=0) if self._cooling.left_s(_kind(one.instance_type, one.region)) else one
            for one in self._pods.offers()
        ]

    # -- the life of a launch --------------------------------------------------------------------

    def start(self, launch: Launch, *, secrets: Mapping[str, str], progress: Progress) -> Instance:
        """Create the pod of ``launch``, unless it is there or has been."""
        kept = self._kept(launch.name)
        if kept is not None:
            return kept
        self._require_able(launch)
        assert launch.rent is not None  # that was looked at
        progress("asking for a pod")
        key = self._key(launch.name)
        with self._alone(key):
            before = self._pod_of(launch.name)
            if before is not None:
                return self._seen(before)
            try:
                pod = made_once(
                    find=lambda: [one for one in self._ours() if one.labels.get(KEY) == key],
                    make=lambda: self._create(launch, key, secrets),
                    end=self._pods.delete,
                )
            except KeySpent:
                raise NoCapacity("the pod was gone at once", backend=self.name) from None
        return self._pending(pod)

    def _create(self, launch: Launch, key: str, secrets: Mapping[str, str]) -> Pod:
        assert launch.rent is not None
        where, kind = where_of(launch.rent), _kind(launch.rent.instance_type, launch.rent.region)
        if left_s := self._cooling.left_s(kind):
            raise NoCapacity(f"{where}: was sold out, is asked for in {left_s:.0f} s", backend=self.name)
        login = secrets.get("registry") if launch.registry_secret else None
        registry = self._hand_in(key, login) if login else None
        handed = {variable: secrets[variable] for variable, _ in launch.secrets}
        body: dict[str, Any] = {
            "name": launch.name,
            "image": launch.image,
            "args": start_command(launch, key),
            "disk": -(-launch.rent.disk_bytes // 10**9) or self._pods.disk_gb,
            "env": {**dict(launch.env), **handed, LABELS: self._labels(launch, key)},
            "ports": [f"{port.container}/tcp" for port in launch.ports],
            **({"registry": registry} if registry else {}),
            **asked_for(launch.rent),
        }
        try:
            return self._pods.create(body, where=where)
        except BackendError as error:
            if isinstance(error, NoCapacity):
                self._cooling.sold_out(kind)
            if registry and not isinstance(error, Unreachable | Busy):  # else there may be a pod that uses it
                self._take_back(key)
            raise

    def _hand_in(self, key: str, login: str) -> str:
        """Return the id of a login of a registry; one that was left of a start that nobody finished goes."""
        self._take_back(key)
        registry = self._pods.add_registry(key, login)
        path = self._handed_in(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(registry)
        return registry

    def _take_back(self, key: str) -> None:
        """Delete the login that was handed in for a key."""
        path = self._handed_in(key)
        if path.exists():
            self._pods.forget_registry(path.read_text())
            path.unlink(missing_ok=True)

    def _handed_in(self, key: str) -> Path:
        return self._state / "registries" / key

    def _labels(self, launch: Launch, key: str) -> str:
        ours = {DEPLOYMENT: self._deployment(), NAMESPACE: self._namespace, KEY: key}
        return labels_text(launch.labels(), **ours)

    def _require_able(self, launch: Launch) -> None:
        """Refuse before anything is rented what no pod can do, with what to do instead."""
        kept = next((mount for mount in launch.mounts if mount.kind != "cache"), None)
        size = sum(len(file.content) for file in launch.files)
        variables = len(launch.env) + len(launch.secrets)
        gpus = asked_for(launch.rent).get("gpu", {}).get("count", 0) if launch.rent else 0
        wrong = [
            (launch.image is None, "a pod runs images", "add image: to the spec"),
            (launch.rent is None, "the launch names nothing to rent", "plan it again"),
            (
                launch.rent is not None and launch.resources.accelerators > gpus,
                f"{launch.resources.accelerators} accelerators: the pod has {gpus}",
                "plan it again",
            ),
            (launch.privileged, "a pod is not privileged", "use another backend"),
            (
                launch.user is not None,
                "a pod's user is its image's",
                "leave user out, or use another backend",
            ),
            (
                kept is not None,
                f"{kept.kind if kept else ''} '{kept.source if kept else ''}': what is in a pod goes with it",
                "use a bucket, or another backend",
            ),
            (
                not (launch.command or launch.entrypoint),
                "a pod has to be told its program: what its image would run is not known here",
                "add commands or entrypoint to the spec",
            ),
            (
                bool(launch.ports) and Can.PORTS not in self.can,
                "RunPod opens ports to the whole internet",
                "set public_ports: true for this backend where that will do, or leave ports out",
            ),
            (variables >= MOST_ENV, f"{variables} variables: a pod has {MOST_ENV - 1}", "use files"),
            (
                4 * size > MOST_FILE_BYTES,
                f"{size} bytes of files: a pod takes {MOST_FILE_BYTES // 4}",
                "have the program fetch them",
            ),
        ]
        for is_so, what, fix in wrong:
            if is_so:
                raise Rejected(what, backend=self.name, fix=fix)

    def instances(self) -> Sequence[Instance]:
        """Return every launch of our namespace: in its pod, or ended and kept."""
        found = {one.name: one for one in self._shelf.ended()}
        listed = self._pods.list()
        self._shelf.forget_buried({pod.id for pod in listed})
        pods = self._mine(listed)
        for pod in pods:
            if pod.launch in found:
                found[pod.launch] = replace(found[pod.launch], rented=True)
        asked = [pod for pod in pods if pod.launch not in found]
        found |= {one.name: one for one in self._at_once(self._seen, asked)}
        return sorted(found.values(), key=lambda one: one.name)

    def stop(self, name: str, *, grace_s: float) -> None:
        """Ask the launch to end; after ``grace_s`` its pod is deleted, which kills it."""
        pod = self._pod_of(name)
        if self._kept(name) is not None or pod is None:
            return
        seen = self._seen(pod)
        if seen.phase is Phase.EXITED:
            return
        self._pods.stop(pod)
        told = self._await_end(pod, grace_s)
        now = datetime.now(UTC)
        code = told.code if told.is_over else 137 if seen.phase is Phase.RUNNING else None
        ended = replace(
            seen, phase=Phase.EXITED, exit_code=code, reason="stopped", message="", rented=False, ports={},
            finished_at=told.ended_at or now,
        )  # fmt: skip
        if not told.is_over:
            self._pods.delete(pod)
        self._shelf.put(ended, told.lines)

    def _await_end(self, pod: Pod, grace_s: float) -> Told:
        """Return all that a pod that was asked to end has said, when it has ended or the grace is over."""
        deadline = time.monotonic() + grace_s
        pause = threading.Event()
        told = self._told(pod)
        while not told.is_over and time.monotonic() < deadline:
            pause.wait(min(STOP_POLL_S, max(0.0, deadline - time.monotonic())))
            told = self._told(pod)
        return told

    def release(self, name: str, *, keep_s: float | None) -> None:  # noqa: ARG002  # a pod is not kept
        """Keep the ended launch and its output here, and delete its pod: another image takes another pod."""
        pod = self._pod_of(name)
        if pod is None:
            return
        if self._kept(name) is None:
            ended = self._seen(pod)
            if ended.phase is not Phase.EXITED:
                raise Rejected(f"launch '{name}' still runs", backend=self.name, fix="stop it first")
            self._shelf.put(replace(ended, rented=False, ports={}), self._told(pod).lines)
        self._end(pod)

    def remove(self, name: str) -> None:
        """Forget the launch and its output, and delete the pod that it still has."""
        for pod in self._ours():
            if pod.launch == name:
                self._end(pod)
                self._shelf.bury(pod.id)  # it may be listed a while yet
        self._shelf.forget(name)
        self._beginning(name).unlink(missing_ok=True)

    def _end(self, pod: Pod) -> None:
        self._pods.delete(pod)
        if key := pod.labels.get(KEY):  # its login went with it
            self._handed_in(key).unlink(missing_ok=True)
        self._over.pop(pod.id, None)

    # -- output ----------------------------------------------------------------------------------

    def logs(
        self, name: str, *, follow: bool = False, since: datetime | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Yield the launch's output: as RunPod has it, or what was kept of it."""
        if self._kept(name) is not None:
            return self._shelf.output(name, since=since, tail=tail)
        pod = self._pod_of(name)
        if pod is None:
            raise NotFound(f"no launch '{name}' on backend '{self.name}'")
        return self._read(pod, follow=follow, since=since, tail=tail)

    def _read(self, pod: Pod, *, follow: bool, since: datetime | None, tail: int | None) -> Iterator[LogLine]:
        """Yield what is there, and with ``follow`` what comes until the end."""
        told = Told()
        cursor = ""
        for line in self._lines(pod, ""):
            list(told.hear(line.text, line.at, pod.labels[KEY]))
            cursor = line.cursor
        found = [one for one in told.lines if since is None or one.at is None or one.at >= since]
        yield from found if tail is None else found[max(0, len(found) - tail) :]
        while follow and not told.is_over and self._lives(pod):
            for line in self._lines(pod, cursor, live=True):
                if line.cursor != cursor:  # which a stream that goes on may begin with
                    yield from told.hear(line.text, line.at, pod.labels[KEY])
                    cursor = line.cursor

    def _lives(self, pod: Pod) -> bool:
        now = self._pod_of(pod.launch)
        return now is not None and now.status not in ENDED

    def _lines(self, pod: Pod, after: str, *, live: bool = False) -> Iterator[Line]:
        """Yield all lines of a pod's output from a cursor on, or from its beginning, up to its end."""
        from_start = {} if after else {"since": _rfc3339(pod.created_at)}
        try:
            for line in self._pods.output(pod, quiet_s=self._quiet_s, after=after, live=live, **from_start):
                yield line
                if split(line.text, pod.labels[KEY])[1] == "ended":
                    return
        except Gone:
            return

    def _told(self, pod: Pod) -> Told:
        """Return all that a pod has said."""
        told = Told()
        for line in self._lines(pod, ""):
            list(told.hear(line.text, line.at, pod.labels[KEY]))
        return told

    def execute(self, name: str, command: Sequence[str], *, tty: bool) -> int:  # noqa: ARG002  # the port's
        """Refuse: a pod has no way in but an SSH server of its image's."""
        raise Rejected("no command can be run inside a pod", backend=self.name, fix=f"see: logs {name}")

    def watch(self, closed: Flag) -> Iterator[str]:
        """Yield "" now and then: RunPod tells nobody of changes."""
        while not closed.wait(WATCH_S):
            yield ""

    # -- what is seen ----------------------------------------------------------------------------

    def _seen(self, pod: Pod) -> Instance:
        """Return the launch of a pod as its state and its output have it."""
        if pod.status not in ("RUNNING", *ENDED):
            return self._still_pending(pod)
        told, is_again = self._glance(pod)
        if is_again:
            return self._exited(
                pod, "lost", f"pod {pod.id}: RunPod started its container again, and what it did is lost",
            )  # fmt: skip
        if told.is_over:
            assert told.code is not None
            reason: Reason = "error" if told.code else ""
            ended = self._exited(pod, reason, "", code=told.code)
            started = ended.started_at or told.ended_at
            finished = max(filter(None, (told.ended_at, started)), default=None)
            return replace(ended, finished_at=finished)
        if pod.status == "ERROR":
            return self._exited(pod, "no-start", f"pod {pod.id}: {self._last_word(pod) or 'it does not run'}")
        if pod.status == "EXITED":
            told_by = "it was stopped at RunPod: by hand, or for lack of credit"
            return self._exited(pod, "lost", f"pod {pod.id}: {told_by}")
        running = self._instance(pod, Phase.RUNNING)
        return replace(running, ports=dict(pod.ports), address=next(iter(pod.ports.values()), (None, 0))[0])

    def _still_pending(self, pod: Pod) -> Instance:
        """Return a launch whose container does not run yet, or never will as it seems."""
        last = self._last_word(pod)
        waited_s = (datetime.now(UTC) - pod.created_at).total_seconds() if pod.created_at else 0.0
        if waited_s > self._boot_s:
            told = f"pod {pod.id} did not run within {self._boot_s} s: {last or 'RunPod does not say why'}"
            return self._exited(pod, "no-start", told)
        found = self._pending(pod)
        return replace(found, message=f"{found.message}: {last}") if last else found

    def _last_word(self, pod: Pod) -> str:
        """Return what RunPod said last of a pod's container, such as why its image cannot be had."""
        try:
            lines = list(self._pods.output(pod, source="system", quiet_s=self._quiet_s, tail="3"))
        except BackendError:
            return ""
        return lines[-1].text.strip()[:200] if lines else ""

    def _glance(self, pod: Pod) -> tuple[Told, bool]:
        """Return what a pod's output says of its program, and whether that was begun again.

        The first beginning is written down here; later only the end of the output is read. A program that
        had ended when its container was started again has ended all the same.
        """
        if pod.id in self._over:
            return self._over[pod.id], False
        first = self._first_began(pod)
        told = self._told(pod) if first is None else self._tail(pod)
        if first is None and told.began:
            self._write_began(pod, told.began[0])
        elif told.began and told.began[-1] != first:
            whole = self._told(pod)
            if not whole.is_over or len(whole.began) > 1:
                return whole, True
            told = whole
        if told.is_over:
            self._over[pod.id] = told
        return told, False

    def _tail(self, pod: Pod) -> Told:
        told = Told()
        with contextlib.suppress(Gone):
            for line in self._pods.output(pod, quiet_s=self._quiet_s, tail=str(TAIL)):
                list(told.hear(line.text, line.at, pod.labels[KEY]))
                if told.is_over:
                    break
        return told

    def _first_began(self, pod: Pod) -> int | None:
        try:
            machine, _, second = self._beginning(pod.launch).read_text().partition(" ")
        except FileNotFoundError:
            return None
        return int(second) if machine == pod.id else None

    def _write_began(self, pod: Pod, second: int) -> None:
        path = self._beginning(pod.launch)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(f"{pod.id} {second}")

    def _beginning(self, launch: str) -> Path:
        return self._state / self._namespace / "began" / launch

    def _pending(self, pod: Pod) -> Instance:
        found = self._instance(pod, Phase.PENDING)
        return replace(found, message=f"pod {pod.id} starts", started_at=None)

    def _exited(self, pod: Pod, reason: Reason, message: str, *, code: int | None = None) -> Instance:
        found = self._instance(pod, Phase.EXITED)
        return replace(found, reason=reason, message=message, exit_code=code)

    def _instance(self, pod: Pod, phase: Phase) -> Instance:
        says = pod.labels
        return Instance(
            says["launch"], says["run"], int(says["replica"]), int(says["node"]), int(says["attempt"]),
            says.get("spec-hash", ""), phase, started_at=pod.started_at, machine=pod.id, rented=True,
        )  # fmt: skip

    # -- machines --------------------------------------------------------------------------------

    def machines(self) -> Sequence[Machine]:
        """Return every pod of our deployment, in any namespace, ordered by id."""
        found = [pod for pod in self._pods.list() if pod.labels.get(DEPLOYMENT) == self._deployment()]
        return sorted((_machine(pod) for pod in found), key=lambda one: one.id)

    def terminate(self, machine: str) -> None:
        """Delete a pod of our deployment."""
        for pod in self._pods.list():
            if pod.id == machine and pod.labels.get(DEPLOYMENT) == self._deployment():
                self._end(pod)
                return
        raise Rejected(
            f"pod {machine} is not one of our deployment", backend=self.name, fix="end it where it was made"
        )

    def check(self) -> Sequence[Check]:
        """Look whether the key is good and RunPod answers."""
        try:
            pods = self._pods.list()
            kinds = {one.instance_type for one in self._pods.offers() if one.available != 0}
        except BackendError as error:
            return [Check.failed("answers", error)]
        return [Check("answers", True, f"{len(kinds)} kinds of pod to be had, {len(pods)} of ours")]

    # -- volumes: a pod keeps none ---------------------------------------------------------------

    def create_volume(self, name: str, *, size_bytes: int | None) -> None:  # noqa: ARG002  # the port's
        """Refuse: what is in a pod goes with it."""
        raise Rejected("pods keep no volumes here", backend=self.name, fix="use a bucket")

    def volumes(self) -> Sequence[Volume]:
        """Return none."""
        return ()

    def delete_volume(self, name: str) -> None:
        """Delete nothing."""

    # -- where things are ------------------------------------------------------------------------

    def _deployment(self) -> str:
        return self._given_deployment or self._shelf.deployment()

    def _ours(self) -> Sequence[Pod]:
        return self._mine(self._pods.list())

    def _mine(self, pods: Sequence[Pod]) -> Sequence[Pod]:
        """Return those of our namespace whose launches were not removed, ordered as they were."""
        mine = {DEPLOYMENT: self._deployment(), NAMESPACE: self._namespace}
        buried = self._shelf.buried()
        return [pod for pod in pods if pod.id not in buried and mine.items() <= pod.labels.items()]

    def _pod_of(self, launch: str) -> Pod | None:
        return next((pod for pod in self._ours() if pod.launch == launch), None)

    def _kept(self, launch: str) -> Instance | None:
        return next((one for one in self._shelf.ended() if one.name == launch), None)

    def _key(self, launch: str) -> str:
        text = f"{self._deployment()}\0{self._namespace}\0{launch}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Keep other processes of this user from asking for the same pod: RunPod knows no keys."""
        path = self._state / "asking" / key
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _at_once(self, question: Callable[[Pod], Instance], pods: Sequence[Pod]) -> list[Instance]:
        if len(pods) < 2:
            return [question(pod) for pod in pods]
        with ThreadPoolExecutor(min(AT_ONCE, len(pods))) as pool:
            return list(pool.map(question, pods))


def _kind(instance_type: str, region: str) -> str:
    return f"{instance_type} {region}"


def _rfc3339(at: datetime | None) -> str:
    return (at or datetime.fromtimestamp(0, UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _machine(pod: Pod) -> Machine:
    return Machine(
        pod.id, pod.launch, pod.labels.get("run", ""), pod.instance_type, pod.region, pod.status.lower(),
        pod.created_at,
    )  # fmt: skip
