"""RunPod's API, version 2, over HTTP, from its public description (docs.runpod.io/api-reference-v2).

The container of a pod is a process of this machine: it is given what a container would be, the start command
and the variables, and its output is what the API streams.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.backends.vm.fake import Asked, FakeCloud, Made, Reply, route

API_KEY = "rpa_of_the_test"
H100 = "NVIDIA H100 80GB HBM3"
GPUS: tuple[dict[str, Any], ...] = (
    {
        "id": H100, "name": "H100 SXM", "pool": "ADA_80_PRO", "manufacturer": "NVIDIA", "memory": 80,
        "secure": True, "community": True, "price": {"secure": 3.99, "community": 2.69, "serverless": 4.2},
        "maxCount": {"secure": 8, "community": 2}, "availability": "HIGH",
        "dataCenters": [
            {"id": "US-KS-2", "name": "US Kansas 2", "availability": "HIGH"},
            {"id": "EU-NL-1", "name": "EU Netherlands 1", "availability": "NONE"},
        ],
    },
    {
        "id": "AMD Instinct MI300X OAM", "name": "MI300X", "pool": None, "manufacturer": "AMD", "memory": 192,
        "secure": True, "community": False, "price": {"secure": 2.99, "community": 0},
        "maxCount": {"secure": 8, "community": 0}, "availability": "NONE",
    },
)  # fmt: skip
CPUS = (
    {
        "id": "cpu5c", "name": "Compute-Optimized", "group": "Gen 5", "vcpu": {"min": 2, "max": 8},
        "ramGbPerVcpu": 2.5, "price": {"securePerVcpu": 0.04, "serverlessPerVcpu": 0.03},
        "availability": "MEDIUM",
        "dataCenters": [{"id": "US-KS-2", "name": "US Kansas 2", "availability": "MEDIUM"}],
    },
)  # fmt: skip
CREATE = ("POST", "/v2/pods$")
LIST = ("GET", "/v2/pods$")


def problem(status: int, title: str, detail: str, *errors: str) -> dict[str, Any]:
    """Return an error as RFC 9457 and RunPod have it."""
    return {"title": title, "status": status, "detail": detail, **({"errors": errors} if errors else {})}


class Container:
    """The process that stands for a pod's container; ``kills_s`` after a stop it is killed."""

    kills_s = 10.0

    def __init__(self, args: str, env: Mapping[str, str], folder: Path) -> None:
        said = json.loads(args)
        self.changed = threading.Condition()
        self.lines: list[tuple[str, str]] = []
        self.is_closed = False
        self._process = subprocess.Popen(
            [*said["entrypoint"], *said["cmd"]], cwd=folder, env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with self.changed:
                    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
                    self.lines.append((at, line.decode(errors="replace").rstrip("\n")))
                    self.changed.notify_all()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, and kill it later as an engine does."""
        self._process.terminate()
        timer = threading.Timer(self.kills_s, self.kill)
        timer.daemon = True
        timer.start()
        threading.Thread(
            target=lambda: (self._process.wait(), timer.cancel(), self.kill()), daemon=True
        ).start()

    def kill(self) -> None:
        """End it with all that it began, as a container ends."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5.0)
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()


class FakeRunpod(FakeCloud):
    """An account; ``pods_dir`` is where containers work."""

    not_found = (404, problem(404, "Not Found", "pod not found"))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(SimpleNamespace(boots=True))  # type: ignore[arg-type]  # its machines are not used

    def reset(self) -> None:
        for one in list(getattr(self, "there", {}).values()):
            one.data["container"] and one.data["container"].kill()
        self.there: dict[str, Made] = {}
        super().reset()
        self.registries: dict[str, dict[str, Any]] = {}
        self.started: list[str] = []
        self._ids = itertools.count(1)

    def tags_of(self, made: Made) -> Mapping[str, str]:
        return {}

    def allows(self, asked: Asked) -> Reply | None:
        if asked.headers.get("Authorization") == f"Bearer {API_KEY}":
            return None
        return 401, problem(401, "Unauthorized", "missing bearer token")

    # -- what there is ---------------------------------------------------------------------------

    @route("GET", "/v2/catalog/gpus")
    def gpus(self, asked: Asked) -> Reply:
        assert (asked.query["include"], asked.query["product"]) == ("AVAILABILITY", "POD")
        assert asked.query["cloud"] in ("SECURE", "COMMUNITY")
        found = [dict(each) for each in GPUS]
        for one in found:
            if int(asked.query["count"]) > 4:
                one.pop("dataCenters", None)
        return 200, {"gpus": found}

    @route("GET", "/v2/catalog/cpus")
    def cpus(self, asked: Asked) -> Reply:
        assert (asked.query["include"], asked.query["product"]) == ("AVAILABILITY", "POD")
        return 200, {"cpus": list(CPUS)}

    # -- pods ------------------------------------------------------------------------------------

    @route("POST", "/v2/pods")
    def create(self, asked: Asked) -> Reply:
        body = asked.body
        known = {
            "name", "image", "args", "disk", "env", "ports", "registry", "gpu", "cpu", "cloud",
            "dataCenterIds",
        }  # fmt: skip
        if set(body) - known or ("gpu" in body) == ("cpu" in body):
            return 422, problem(422, "Unprocessable Entity", "Request validation failed.", "$: additional")
        assert len(body["env"]) <= 50
        assert all(port.endswith("/tcp") for port in body["ports"])
        assert all(isinstance(value, str) for value in body["env"].values())
        assert max(map(len, json.loads(body["args"])["cmd"])) < 128 * 1024
        if "gpu" in body and body["gpu"]["id"] not in [each["id"] for each in GPUS]:
            return 400, problem(400, "Bad Request", "There are no longer any instances available")
        pod = f"{next(self._ids):010x}"
        folder = self.folder / pod
        folder.mkdir(parents=True)
        bad = body["image"].startswith("missing")
        container = None if bad else Container(body["args"], body["env"], folder)
        self.started.append(body["name"])
        self.made += 1
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        data = {"body": body, "container": container, "createdAt": now, "status": "STARTING" if bad else ""}
        self.there[pod] = Made(pod, "", data)
        return 201, {**self._pod(self.there[pod]), "status": "PROVISIONING", "startedAt": None}

    def _pod(self, made: Made) -> dict[str, Any]:
        body, container = made.data["body"], made.data["container"]
        status = made.data["status"] or ("RUNNING" if container.runs else "EXITED")
        ports = [
            {"private": int(port.split("/")[0]), "public": 10_000 + int(port.split("/")[0]), "type": "tcp",
             "ip": "203.0.113.7"}
            for port in body["ports"]
        ]  # fmt: skip
        kind = {"gpu": body["gpu"]} if "gpu" in body else {"cpu": {**body["cpu"], "memory": 16}}
        return {
            "id": made.id, "name": body["name"], "image": body["image"], "args": body["args"],
            "disk": body["disk"], "ports": body["ports"], "env": body["env"],
            "registry": body.get("registry"), "status": status, "actions": [], "mounts": {}, **kind,
            "cloud": body["cloud"], "dataCenterId": (body.get("dataCenterIds") or ["US-TX-3"])[0],
            "cudaVersion": "12.8", "ssh": {"proxy": None, "direct": None}, "template": None, "cost": 3.99,
            "locked": False, "globalNetworking": {"enabled": False},
            "runtime": {"uptime": 1, "ports": ports} if status == "RUNNING" else None,
            "createdAt": made.data["createdAt"],
            "startedAt": made.data["createdAt"] if status in ("RUNNING", "EXITED") else None,
        }  # fmt: skip

    @route("GET", "/v2/pods")
    def list_pods(self, _: Asked) -> Reply:
        return 200, {"pods": [self._pod(one) for one in self.there.values()] + [self.stranger()]}

    def stranger(self) -> dict[str, Any]:
        """Return a pod that somebody made by hand."""
        return {
            "id": "7h9k2m4n6p", "name": "pytorch-training", "env": {"MODEL_NAME": "llama-3"},
            "status": "RUNNING", "gpu": {"id": H100, "count": 1}, "cloud": "SECURE",
        }  # fmt: skip

    @route("DELETE", "/v2/pods/([0-9a-z]+)")
    def delete(self, asked: Asked) -> Reply:
        made = self.there.pop(asked.groups[0], None)
        if made is None:
            return self.not_found
        if made.data["container"]:
            made.data["container"].kill()
        return 204, None

    @route("POST", "/v2/pods/([0-9a-z]+)/action")
    def action(self, asked: Asked) -> Reply:
        made = self.there.get(asked.groups[0])
        if made is None:
            return self.not_found
        assert asked.body == {"action": "stop"}
        if self._pod(made)["status"] == "EXITED":
            return 409, problem(409, "Conflict", "action stop is not valid for a pod that is EXITED")
        if made.data["container"]:
            made.data["container"].stop()
        return 200, self._pod(made)

    @route("GET", "/v2/pods/([0-9a-z]+)/logs")
    def logs(self, asked: Asked) -> Reply:
        made = self.there.get(asked.groups[0])
        if made is None:
            return self.not_found
        if asked.query["source"] == "system":
            return 200, self._system(made)
        cursor = asked.headers.get("Last-Event-ID")
        return 200, self._stream(made, asked.query, cursor)

    def _system(self, made: Made) -> Iterator[bytes]:
        said = "create container" if made.data["container"] else "error pulling image: manifest unknown"
        line = {"ts": made.data["createdAt"], "source": "system", "line": said}
        yield f"id: {made.data['createdAt']}\ndata: {json.dumps(line)}\n\n".encode()

    def _stream(self, made: Made, query: Mapping[str, str], cursor: str | None) -> Iterator[bytes]:
        """Yield the backlog that was asked for, then what comes; the stream does not end by itself."""
        container = made.data["container"]
        if container is None:
            return
        if cursor is not None:
            at = int(cursor.rsplit("/", 1)[1]) + 1
        elif "since" in query:
            since = datetime.fromisoformat(query["since"])
            at = sum(datetime.fromisoformat(line[0]) < since for line in container.lines)
        else:
            at = max(0, len(container.lines) - int(query.get("tail", 100)))
        while True:
            with container.changed:
                while at >= len(container.lines):
                    if container.is_closed or not container.changed.wait(5.0):
                        return
                ts, text = container.lines[at]
            line = {"ts": ts, "source": "container", "line": text}
            yield f"id: {ts}/{at:012d}\ndata: {json.dumps(line)}\n\n".encode()
            at += 1

    # -- registries ------------------------------------------------------------------------------

    @route("POST", "/v2/registries")
    def add_registry(self, asked: Asked) -> Reply:
        made = {"id": f"reg{next(self._ids)}", **asked.body}
        self.registries[made["id"]] = made
        return 201, {"id": made["id"], "name": made["name"]}

    @route("GET", "/v2/registries/(\\w+)")
    def get_registry(self, asked: Asked) -> Reply:
        made = self.registries.get(asked.groups[0])
        return (200, {"id": made["id"], "name": made["name"]}) if made else self.not_found

    @route("DELETE", "/v2/registries/(\\w+)")
    def forget_registry(self, asked: Asked) -> Reply:
        if self.registries.pop(asked.groups[0], None) is None:
            return self.not_found
        return 204, None
