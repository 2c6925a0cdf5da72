"""Lambda: machines of Lambda's on-demand cloud that are rented for a launch, over SSH and Docker.

Facts of the API are from its OpenAPI description (docs.lambda.ai/api/cloud, versions 1.8.3 to 1.10.0).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from backends.vm import RentedMachines, boot
from backends.vm.cooling import where_of
from backends.vm.labels import plain_name
from backends.vm.once import made_once
from backends.vm.options import secret, words
from backends.vm.port import KEY, LAUNCH, SYSTEM_BYTES, Order, Vm
from backends.vm.rest import Gone, Meaning, Refusal, Rest, Taken, by_status
from orchestrator.backend import LABEL, Check, Offer
from orchestrator.errors import BackendError
from orchestrator.units import GIB

URL = "https://cloud.lambda.ai/api/v1"
KEYS_PAGE = "https://cloud.lambda.ai/api-keys"

BOOT_S = 300
"""One to eight minutes, by Lambda's own measure of its images; most of them around five."""

STATES: Mapping[str, Literal["pending", "running", "ending", "ended"]] = {
    "booting": "pending", "active": "running", "unhealthy": "running", "terminating": "ending",
    "terminated": "ended", "preempted": "ended",
}  # fmt: skip

MEANINGS: Mapping[str, Meaning] = {
    "instance-operations/launch/insufficient-capacity": Meaning.SOLD_OUT,
    "global/quota-exceeded": Meaning.LIMIT,
    "global/invalid-api-key": Meaning.EXPIRED,
    "global/account-inactive": Meaning.DENIED,
    "global/invalid-address": Meaning.DENIED,
    "global/object-does-not-exist": Meaning.GONE,
    "global/duplicate": Meaning.TAKEN,
    "global/internal-error": Meaning.LATER,
    "global/unknown": Meaning.LATER,
}
"""Codes of the API's errors. What begins with ``provider/`` comes from whoever Lambda buys from."""

FIXES: Mapping[Meaning, str] = {
    Meaning.SOLD_OUT: "allow another region or instance type",
    Meaning.LIMIT: "ask Lambda's support for a higher limit, or allow another backend",
    Meaning.EXPIRED: f"set LAMBDA_API_KEY to a key from {KEYS_PAGE}",
    Meaning.DENIED: "verify the account's address and payment at https://cloud.lambda.ai",
}

_GPU = re.compile(r"(?P<name>.+?) \((?P<gb>\d+) GB ?(?P<form>[A-Za-z]*)\d*\)")


class Lambda(RentedMachines):
    """Runs each launch on an instance of Lambda's that is rented for it.

    Args:
        name: The backend's name in the configuration.
        regions: Where machines are rented; default: wherever there are some.
        api_key_file: The file that holds the API key; default: the variable ``LAMBDA_API_KEY``.
        image_family: The family of the image; default: Lambda Stack, with driver and Docker.
        user: Who logs in on that image.
        port: Its SSH port.
        identity_file: The private key for the machines; default: one is made for this user.
        deployment: Tells our machines from others' of the account, and has to be the same for all
            that share a record; default: one is made for this user.
        namespace: Begins the names of containers.
        abandoned_after: How long a machine stays up after it last heard of us.
        boot_timeout: How long a machine may take until its engine answers.
        timeout_s: How long one answer of an engine may take.
        endpoint_url: Another address of the API.

    Raises:
        ConfigError: an option has no such value.
    """

    def __init__(
        self,
        name: str = "lambda",
        *,
        regions: Sequence[str] = (),
        api_key_file: str | None = None,
        image_family: str | None = None,
        user: str = "ubuntu",
        port: int = 22,
        identity_file: str | None = None,
        deployment: str | None = None,
        namespace: str = "modelyard",
        abandoned_after: str = "1d",
        boot_timeout: str = "15m",
        timeout_s: float = 30.0,
        endpoint_url: str = URL,
    ) -> None:
        cloud = LambdaCloud(
            name,
            regions=words(name, "regions", regions),
            api_key_file=api_key_file,
            image_family=image_family,
            url=endpoint_url,
        )
        super().__init__(
            name,
            cloud,
            user=user,
            port=port,
            identity_file=identity_file,
            deployment=deployment,
            namespace=namespace,
            abandoned_after=abandoned_after,
            boot_timeout=boot_timeout,
            timeout_s=timeout_s,
            prepare=[boot.TOOLKIT],
        )


class LambdaCloud:
    """Machines of one account at Lambda.

    Tags are given when a machine is launched and never change; a machine's name can. So the tags hold
    what stays (deployment, namespace, key), and the name holds the launch that has the machine.

    Args:
        backend: The backend's name, for errors and offers.
        regions: Where to look; all where there are none.
        api_key_file: As for ``Lambda``.
        image_family: As for ``Lambda``.
        url: Where the API answers.
    """

    def __init__(
        self,
        backend: str,
        *,
        regions: tuple[str, ...],
        api_key_file: str | None,
        image_family: str | None,
        url: str,
    ) -> None:
        self._backend = backend
        self._regions = regions
        self._file = api_key_file
        self._image = image_family
        self._api = Rest(url, backend=backend, sign=self._sign, read=read, fixes=FIXES)

    def _sign(self) -> dict[str, str]:
        key = secret(self._backend, variable="LAMBDA_API_KEY", file=self._file, page=KEYS_PAGE)
        return {"Authorization": f"Bearer {key}"}

    def offers(self) -> Sequence[Offer]:
        """Return each type in each region that has some now; one that nobody has is there as sold out."""
        return [offer for _, one in sorted(self._types().items()) for offer in self._offers(one)]

    def _types(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._api.get("/instance-types", where="instance types")["data"]
        return found

    def _offers(self, one: Mapping[str, Any]) -> Iterator[Offer]:
        shape = shape_of(one["instance_type"])
        if shape is None:
            return
        here = sorted(region["name"] for region in one["regions_with_capacity_available"])
        wanted = [region for region in here if not self._regions or region in self._regions]
        for region in wanted:
            yield Offer(self._backend, region=region, **shape)
        if not wanted:
            yield Offer(self._backend, region="", available=0, **shape)

    def create(self, order: Order) -> Vm:
        """Launch one instance, unless one with the order's key is there."""
        return made_once(
            find=lambda: self.list({KEY: order.key}), make=lambda: self._launch(order), end=self.terminate
        )

    def _launch(self, order: Order) -> Vm:
        where = where_of(order.rent)
        launch = order.tags[LAUNCH]
        body: dict[str, Any] = {
            "region_name": order.rent.region,
            "instance_type_name": order.rent.instance_type,
            "ssh_key_names": [self._key_name(order.public_key)],
            "name": launch,
            "user_data": order.user_data,
            "tags": [
                {"key": _tag(key), "value": value}
                for key, value in sorted({**order.tags, MADE_FOR: launch}.items())
                if key != LAUNCH
            ],
        }
        if self._image:
            body["image"] = {"family": self._image}
        (made,) = self._api.send("POST", "/instance-operations/launch", body, where=where)["data"][
            "instance_ids"
        ]
        return Vm(made, "pending", order.rent.instance_type, order.rent.region, tags=order.tags)

    def _key_name(self, public_key: str) -> str:
        """Return the name under which Lambda knows our key: a machine is not launched without one."""
        name = f"modelyard-{hashlib.sha256(public_key.encode()).hexdigest()[:16]}"
        known = self._api.get("/ssh-keys", where="SSH keys")["data"]
        if not any(key["name"] == name for key in known):
            body = {"name": name, "public_key": public_key}
            with contextlib.suppress(Taken):  # another process was faster
                self._api.send("POST", "/ssh-keys", body, where="SSH keys")
        return name

    def get(self, vm: Vm) -> Vm | None:
        """Return an instance as it is now."""
        try:
            return vm_of(self._api.get(f"/instances/{vm.id}", where=vm.id)["data"])
        except Gone:
            return None

    def list(self, tags: Mapping[str, str]) -> Sequence[Vm]:
        """Return all instances with these tags, in every region."""
        found = [vm_of(one) for one in self._api.get("/instances", where="instances")["data"]]
        return [vm for vm in found if tags.items() <= vm.tags.items()]

    def tag(self, vm: Vm, tags: Mapping[str, str]) -> None:
        """Give an instance the name of the launch that has it: its other tags stay as they were made."""
        if LAUNCH in tags:
            body = {"name": tags[LAUNCH] or IDLE}
            self._api.send("POST", f"/instances/{vm.id}", body, where=vm.id)

    def terminate(self, vm: Vm) -> None:
        """Terminate an instance; gone is no error."""
        body = {"instance_ids": [vm.id]}
        with contextlib.suppress(Gone):
            self._api.send("POST", "/instance-operations/terminate", body, where=vm.id)

    def check(self) -> Sequence[Check]:
        """Look whether the key is good, and which of the configured regions Lambda knows."""
        try:
            types = self._types()
        except BackendError as error:
            return [Check.failed("answers", error)]
        regions = {r["name"] for one in types.values() for r in one["regions_with_capacity_available"]}
        told = f"{len(types)} instance types, some free in {', '.join(sorted(regions)) or 'no region'}"
        return [Check("answers", True, told)]


IDLE = "modelyard-idle"
"""The name of an instance that no launch has."""

MADE_FOR = LABEL + "made-for"
"""The tag that says which launch the tags of an instance are about, which never change."""


def read(status: int, body: Any) -> Refusal:
    """Return what an error of the API means.

    >>> read(400, {"error": {"code": "instance-operations/launch/insufficient-capacity", "message": "No."}})
    Refusal(meaning=<Meaning.SOLD_OUT: 'none to be had now'>, \
code='instance-operations/launch/insufficient-capacity', message='No.')
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Refusal(by_status(status), f"HTTP {status}")
    code = str(error.get("code", ""))
    meaning = MEANINGS.get(code)
    if meaning is None:
        meaning = Meaning.LATER if code.startswith("provider/") else by_status(status)
    return Refusal(meaning, code, str(error.get("message", "")))


def shape_of(kind: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an offer needs of an instance type; None for what we cannot use.

    >>> shape = shape_of({
    ...     "name": "gpu_8x_h100_sxm5", "gpu_description": "H100 (80 GB SXM5)", "price_cents_per_hour": 2392,
    ...     "specs": {"vcpus": 208, "memory_gib": 1800, "storage_gib": 22000, "gpus": 8}})
    >>> shape["accelerator"], shape["count"], shape["vram_bytes"] // GIB, shape["price_usd_hour"]
    ('H100', 8, 80, 23.92)
    """
    specs = kind["specs"]
    shape: dict[str, Any] = {
        "instance_type": kind["name"],
        "cpu": float(specs["vcpus"]),
        "memory_bytes": specs["memory_gib"] * GIB,
        "disk_bytes": specs["storage_gib"] * GIB,
        "fetches": True,
        "system_bytes": SYSTEM_BYTES,
        "price_usd_hour": kind["price_cents_per_hour"] / 100,
        "boot_s": BOOT_S,
        # Grace is the only processor of Arm's that Lambda rents out
        "arch": "arm" if re.search(r"\bG[HB]\d00", kind["gpu_description"]) else "x86",
    }
    if not specs["gpus"]:
        return shape
    gpu = _GPU.fullmatch(kind["gpu_description"])
    if gpu is None:
        return None
    form = " PCIe" if gpu["form"].upper() == "PCIE" and gpu["name"] == "H100" else ""
    return shape | {
        "accelerator": gpu["name"] + form,
        "vendor": "nvidia",
        "count": specs["gpus"],
        "vram_bytes": int(gpu["gb"]) * GIB,
    }


def vm_of(instance: Mapping[str, Any]) -> Vm:
    """Return an instance of the API's as we see it."""
    tags = {_untag(tag["key"]): tag["value"] for tag in instance.get("tags") or ()}
    name = instance.get("name") or ""
    if KEY in tags:
        tags |= _labels_of(name)
        if tags.get(MADE_FOR) != name:
            tags.pop(LABEL + "spec-hash", None)
    # one that does not answer and that nobody has may have powered itself off: it is paid for all the same
    is_left = instance["status"] == "unhealthy" and tags.get(LAUNCH) == ""
    return Vm(
        id=instance["id"],
        state="ended" if is_left else STATES.get(instance["status"], "pending"),
        instance_type=instance["instance_type"]["name"],
        region=instance["region"]["name"],
        address=instance.get("ip"),
        internal_ip=instance.get("private_ip"),
        tags=tags,
        preempted=instance["status"] == "preempted",
        lingers=is_left,
    )


def _labels_of(name: str) -> dict[str, str]:
    """Return the tags that a launch's name says.

    >>> sorted(_labels_of("chat-eu-0-1-2").values())
    ['0', '1', '2', 'chat-eu', 'chat-eu-0-1-2']
    """
    if name == IDLE or name.count("-") < 3:
        return {LAUNCH: ""}
    run, replica, node, attempt = name.rsplit("-", 3)
    values = {"launch": name, "run": run, "replica": replica, "node": node, "attempt": attempt}
    return {LABEL + key: value for key, value in values.items()}


def _tag(key: str) -> str:
    """Return a tag as Lambda spells them: at most 55 small letters, digits, ``-`` and ``:``."""
    return "modelyard:" + key.removeprefix(LABEL) if key.startswith(LABEL) else plain_name(key, 55)


def _untag(key: str) -> str:
    return LABEL + key.removeprefix("modelyard:") if key.startswith("modelyard:") else key
