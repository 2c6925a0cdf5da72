"""EC2 for tests: moto behind a layer that sells out, limits, throttles and keeps client tokens.

moto knows types, images, tags and states. What it does not do is added here: a ClientToken makes
one instance, zones are sold out, an account has limits. A machine "boots" by doing what its user
data says, on this machine and with what would touch the system replaced, and answers at a loopback
address of its own where a real ``sshd`` listens.
"""

from __future__ import annotations

import base64
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from backends.aws import ebs
from tests.backends.ssh.farm import Farm, Sshd
from tests.backends.vm.machines import Machines, end_containers, machines

REGIONS = ("us-east-1", "us-west-2")
IMAGE = "modelyard test image"
ERROR = (
    '<?xml version="1.0"?><Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error>'
    "</Errors><RequestID>1</RequestID></Response>"
)
Answer = Callable[[str, list[tuple[str, str]]], Any]


@dataclass
class Cloud:
    """One account, and what is wrong with it at the moment.

    ``sold_out`` holds ``(type, zone)``, ``limited`` regions, ``throttled`` how many calls are still
    turned away. ``asked`` are the (type, zone) of every RunInstances that came in, and what was said.
    """

    machines: Machines
    port: int = 0
    sold_out: set[tuple[str, str]] = field(default_factory=set)
    limited: set[str] = field(default_factory=set)
    throttled: int = 0
    denied: str = ""
    reservations: list[dict[str, str]] = field(default_factory=list)
    """Capacity reservations, which moto does not know: the fields of EC2's answer."""
    calls: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    orders: list[dict[str, str]] = field(default_factory=list)
    """Every RunInstances that made a machine, as it was sent."""
    tokens: dict[str, str] = field(default_factory=dict)
    requests: dict[str, dict[str, str]] = field(default_factory=dict)
    room: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many more machines a (type, zone) has; any number where it is not said."""
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    """Placement groups, which moto does not know: the tags of each by name."""
    members: dict[str, str] = field(default_factory=dict)
    """The placement group of each instance."""
    ending: set[str] = field(default_factory=set)
    """Instances that have been terminated and still count as members."""
    elastic: dict[str, str] = field(default_factory=dict)
    """Where instances answer that get their public address later, by network interface."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def folder(self) -> Path:
        """Return where its machines' books lie."""
        return self.machines.folder

    @property
    def host(self) -> Sshd:
        """Return what answers for its machines."""
        return self.machines.host

    @property
    def url(self) -> str:
        """Return where EC2 answers."""
        return f"http://127.0.0.1:{self.port}"

    def options(self, **more: Any) -> dict[str, Any]:
        """Return the options of a backend that rents here."""
        return {
            "regions": list(REGIONS[:1]), "instance_types": ["t3.micro"], "image_owner": "self",
            "image_name": IMAGE, "user": "root", "port": self.host.port, "endpoint_url": self.url,
            "boot_timeout": "30s", **more,
        }  # fmt: skip

    def reset(self) -> None:
        """Put right what a test put wrong."""
        self.sold_out, self.limited, self.throttled, self.denied = set(), set(), 0, ""
        self.machines.boots = True
        self.calls.clear()
        self.asked.clear()
        self.tokens.clear()
        self.reservations.clear()
        self.orders.clear()
        for known in (self.room, self.groups, self.members, self.elastic):
            known.clear()
        self.ending.clear()
        for one in self.addresses():
            one.ec2_backend.release_address(allocation_id=one.allocation_id)

    # -- what is there ---------------------------------------------------------------------------

    def instances(self) -> list[Any]:
        """Return every instance of every region that has not ended, as moto has it."""
        return [one for one in self._all() if one.state not in ("terminated", "shutting-down")]

    def _all(self) -> list[Any]:
        from moto.ec2.models import ec2_backends

        regions = (ec2_backends["123456789012"][region] for region in REGIONS)
        return [one for region in regions for one in region.all_instances()]

    def of(self, launch: str) -> list[Any]:
        """Return the live instances with a launch's tag."""
        return [one for one in self.instances() if _tags(one).get("modelyard.dev/launch") == launch]

    def rent_for_another(self, *, launch: str, deployment: str) -> None:
        """Make a machine with somebody's tags, past any backend."""
        import boto3

        tags = {
            "deployment": deployment,
            "namespace": "x",
            "launch": launch,
            "run": launch.rsplit("-", 3)[0],
            "key": launch,
        }
        boto3.client("ec2", region_name=REGIONS[0], endpoint_url=self.url).run_instances(
            ImageId=self._image(), InstanceType="t3.micro", MinCount=1, MaxCount=1, ClientToken=launch,
            UserData='#cloud-config\n{"ssh_authorized_keys": [], "bootcmd": [], "runcmd": []}',
            TagSpecifications=[
                {
                    "ResourceType": "instance",
                    "Tags": [{"Key": f"modelyard.dev/{key}", "Value": value} for key, value in tags.items()],
                }
            ],
        )  # fmt: skip

    def _image(self) -> str:
        from moto.ec2.models import ec2_backends

        found = ec2_backends["123456789012"][REGIONS[0]].amis.values()
        return next(str(image.id) for image in found if image.name == IMAGE)

    def take_away(self, instance: Any) -> None:
        """End a spot machine as its provider does."""
        instance.terminate()
        instance.state_reason.code = "Server.SpotInstanceTermination"
        _end_containers(instance)

    # -- WSGI ------------------------------------------------------------------------------------

    def around(self, app: Any) -> Any:
        """Return moto's application behind this layer."""

        def layered(environ: dict[str, Any], respond: Answer) -> Iterable[bytes]:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(size)
            environ["wsgi.input"] = BytesIO(body)
            asked = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            action = asked.get("Action", "")
            with self._lock:
                self.calls.append(action)
                if refusal := self._refusal(action, asked, environ):
                    return refusal(respond)
                if action.endswith("PlacementGroup") or action == "DescribePlacementGroups":
                    return self._placement(action, asked)(respond)
                if action == "DescribeCapacityReservations":
                    return self._reserved(respond)
                if asked.get("Filter.1.Name") == "client-token":
                    return self._of_token(app, environ, respond, asked["Filter.1.Value.1"])
                if action != "RunInstances":
                    answer = list(app(environ, respond))
                    if action == "AssociateAddress" and asked["NetworkInterfaceId"] in self.elastic:
                        self._answer_at(asked["NetworkInterfaceId"])
                    if action == "AttachVolume":
                        self._plug_in(asked["VolumeId"])
                    if action == "TerminateInstances":
                        ended = [one for one in self._all() if one.id == asked["InstanceId.1"]]
                        for one in ended:
                            _end_containers(one)
                            self._unplug(one.id)
                    return answer
                return self._run(app, environ, respond, asked)

        return layered

    def _refusal(self, action: str, asked: dict[str, str], environ: dict[str, Any]) -> Any:
        if self.denied:
            return _error(403, self.denied, "not you")
        if self.throttled:
            self.throttled -= 1
            return _error(503, "RequestLimitExceeded", "Request limit exceeded.")
        if action != "RunInstances":
            return None
        kind, zone = asked["InstanceType"], asked.get("Placement.AvailabilityZone", "")
        if asked["ClientToken"] in self.tokens:
            return None
        several = "NetworkInterface.2.DeviceIndex" in asked
        if several and any(key.endswith(".AssociatePublicIpAddress") for key in asked):
            text = "The associatePublicIpAddress parameter cannot be specified with several interfaces"
            return _error(400, "InvalidParameterCombination", text)
        group = asked.get("Placement.GroupName")
        if group is not None and group not in self.groups:
            return _error(400, "InvalidPlacementGroup.Unknown", f"The placement group {group} is unknown")
        if (kind, zone) in self.sold_out or self.room.get((kind, zone), 1) < 1:
            self.asked.append((kind, zone, "sold out"))
            # EC2 says so with HTTP 500, which botocore would repeat
            return _error(500, "InsufficientInstanceCapacity", f"no sufficient {kind} capacity in {zone}")
        if zone[:-1] in self.limited:
            self.asked.append((kind, zone, "limited"))
            return _error(
                400, "VcpuLimitExceeded", "You have requested more vCPU capacity than your limit of 0"
            )
        if (kind, zone) in self.room:
            self.room[kind, zone] -= 1
        self.asked.append((kind, zone, "made"))
        return None

    def _run(
        self, app: Any, environ: dict[str, Any], respond: Answer, asked: dict[str, str]
    ) -> Iterable[bytes]:
        token = asked["ClientToken"]
        known = next((one for one in self._all() if one.id == self.tokens.get(token)), None)
        if known is not None:
            if known.state in ("terminated", "shutting-down"):
                return _error(400, "IdempotentInstanceTerminated", "the instance has been terminated")(
                    respond
                )
            if self.requests[token] != asked:
                return _error(400, "IdempotentParameterMismatch", "another request with this token")(respond)
            text = self._describe(app, environ, known.id)
            reservation = text[text.index("<item>") + 6 : text.rindex("</item>")]
            respond("200 OK", [("Content-Type", "text/xml")])
            return [f"<RunInstancesResponse>{reservation}</RunInstancesResponse>".encode()]
        before = {one.id for one in self._all()}
        answer = list(app(environ, respond))
        for one in self._all():
            if one.id not in before:
                self.tokens[token], self.requests[token] = one.id, asked
                self.orders.append(asked)
                if group := asked.get("Placement.GroupName"):
                    self.members[one.id] = group
                if "NetworkInterface.2.DeviceIndex" in asked:  # EC2 gives none then
                    answer = [re.sub(rb"<ipAddress>.*?</ipAddress>", b"", part) for part in answer]
                self._boot(one, base64.b64decode(asked["UserData"]).decode())
        return answer

    def _placement(self, action: str, asked: dict[str, str]) -> Callable[[Answer], Iterable[bytes]]:
        """Keep placement groups, as API_CreatePlacementGroup and its like describe them."""
        if action == "DescribePlacementGroups":
            wanted = {
                value.removeprefix("tag:"): asked[f"Filter.{key.split('.')[1]}.Value.1"]
                for key, value in asked.items() if key.startswith("Filter.") and key.endswith(".Name")
            }  # fmt: skip
            found = {name: tags for name, tags in self.groups.items() if wanted.items() <= tags.items()}
            return _said(
                action, f"<placementGroupSet>{''.join(map(_group_xml, found.items()))}</placementGroupSet>"
            )
        name = asked["GroupName"]
        if action == "CreatePlacementGroup":
            if name in self.groups:
                return _error(400, "InvalidPlacementGroup.Duplicate", f"The placement group {name} exists")
            tags = {
                value: asked[key.replace(".Key", ".Value")]
                for key, value in asked.items()
                if key.endswith(".Key")
            }
            self.groups[name] = tags
            return _said(action, "<return>true</return>")
        if name not in self.groups:
            return _error(400, "InvalidPlacementGroup.Unknown", f"The placement group {name} is unknown")
        alive = {one.id for one in self.instances()} | self.ending
        if any(group == name and id in alive for id, group in self.members.items()):
            return _error(400, "InvalidPlacementGroup.InUse", f"The placement group {name} is in use")
        del self.groups[name]
        return _said(action, "<return>true</return>")

    def _answer_at(self, interface: str) -> None:
        """Let a machine be reached at its new public address: here all of them are loopback ones."""
        for one in self._all():
            if one.nics and one.nics[0].id == interface:
                one.nics[0].public_ip = self.elastic[interface]

    def volumes(self) -> list[Any]:
        """Return every volume that was made for its own sake, and not with a machine."""
        from moto.ec2.models import ec2_backends

        found = (ec2_backends["123456789012"][region].volumes.values() for region in REGIONS)
        named = ("modelyard.dev/volume",)
        return [one for kept in found for one in kept if any(tag["key"] in named for tag in one.get_tags())]

    def _plug_in(self, volume: str) -> None:
        """Let a volume's device appear on the machine: a loop device of this one, the first time empty."""
        link = Path(ebs.DEVICE.format(volume.replace("-", "")))
        if link.exists():
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        image = link.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(16 * 2**20)
        made = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
        link.symlink_to(made.stdout.strip())

    def _unplug(self, machine: str) -> None:
        """Free the volumes of a machine that was terminated, as EC2 does."""
        for one in self.volumes():
            if one.attachment is not None and one.attachment.instance.id == machine:
                one.attachment = None

    def pull_out(self) -> None:
        """Delete every volume, and take away the devices of all that ever were."""
        for one in self.volumes():
            one.attachment = None
            one.ec2_backend.delete_volume(one.id)
        for link in Path(ebs.DEVICE).parent.glob("vol*"):
            if link.is_symlink():
                subprocess.run(["losetup", "-d", link.readlink()], check=True)
                link.unlink()

    def addresses(self) -> list[Any]:
        """Return every elastic address of the account."""
        from moto.ec2.models import ec2_backends

        found = (ec2_backends["123456789012"][region].addresses for region in REGIONS)
        return [one for kept in found for one in kept]

    def _describe(self, app: Any, environ: dict[str, Any], machine: str) -> str:
        body = f"Action=DescribeInstances&InstanceId.1={machine}&Version=2016-11-15".encode()
        again = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return b"".join(app(again, lambda *_: None)).decode()

    def _of_token(self, app: Any, environ: dict[str, Any], respond: Answer, token: str) -> Iterable[bytes]:
        machine = self.tokens.get(token)
        none = "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>"
        respond("200 OK", [("Content-Type", "text/xml")])
        return [(self._describe(app, environ, machine) if machine else none).encode()]

    def _reserved(self, respond: Answer) -> Iterable[bytes]:
        items = "".join(
            "<item>" + "".join(f"<{key}>{value}</{key}>" for key, value in one.items()) + "</item>"
            for one in self.reservations
        )
        whole = f"<capacityReservationSet>{items}</capacityReservationSet>"
        respond("200 OK", [("Content-Type", "text/xml")])
        return [
            f"<DescribeCapacityReservationsResponse>{whole}</DescribeCapacityReservationsResponse>".encode()
        ]

    # -- machines --------------------------------------------------------------------------------

    def _boot(self, instance: Any, user_data: str) -> None:
        """Give a machine its address, and do what cloud-init would."""
        address = self.machines.boot(user_data)
        if len(instance.nics) > 1:
            self.elastic[instance.nics[0].id] = address
            instance.nics[0].public_ip = None
        else:
            instance.nics[0].public_ip = address

    def book(self, instance: Any) -> Path:
        """Return the folder in which a machine keeps its book."""
        return self.machines.book(_tags(instance)["modelyard.dev/key"])

    def timer(self) -> list[str]:
        """Return the commands that were given to systemd-run, in order."""
        return self.machines.timer()


def _end_containers(instance: Any) -> None:
    """End what ran on a machine: the engine behind all of them goes on."""
    end_containers(_tags(instance))


def _tags(instance: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in instance.get_tags()}


def _error(status: int, code: str, text: str) -> Callable[[Answer], Iterable[bytes]]:
    def answer(respond: Answer) -> Iterable[bytes]:
        respond(f"{status} said", [("Content-Type", "text/xml")])
        return [ERROR.format(code=code, text=text).encode()]

    return answer


def _said(action: str, text: str) -> Callable[[Answer], Iterable[bytes]]:
    def answer(respond: Answer) -> Iterable[bytes]:
        respond("200 OK", [("Content-Type", "text/xml")])
        return [f"<{action}Response>{text}</{action}Response>".encode()]

    return answer


def _group_xml(group: tuple[str, dict[str, str]]) -> str:
    name, tags = group
    items = "".join(f"<item><key>{key}</key><value>{value}</value></item>" for key, value in tags.items())
    return (
        f"<item><groupName>{name}</groupName><strategy>cluster</strategy><state>available</state>"
        f"<tagSet>{items}</tagSet></item>"
    )


@contextmanager
def cloud(farm: Farm, folder: Path) -> Iterator[Cloud]:
    """Lend an account with an image, and a host that answers for every machine."""
    pytest.importorskip("moto")
    with machines(farm, folder) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ebs, "DEVICE", str(folder / "disks" / "{}"))  # all machines are this one
        yield from _lend(Cloud(made))


def _lend(lent: Cloud) -> Iterator[Cloud]:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.ec2.models import ec2_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    assert DEFAULT_ACCOUNT_ID == "123456789012"
    app = lent.around(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    lent.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        for region in REGIONS:
            backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
            backend.register_image(name=IMAGE, description="x")
        yield lent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for region in REGIONS:
            ec2_backends[DEFAULT_ACCOUNT_ID][region].reset()
