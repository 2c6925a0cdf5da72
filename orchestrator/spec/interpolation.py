"""References in a spec: ``${{ env.X }}``, ``${{ secrets.X }}`` and ``${{ run.args }}``.

What the environment and the command line say is put in when a spec is loaded, and so becomes
part of what is planned and recorded. Secrets are not: they stay references until a container
starts, and may only stand where they can, in ``env`` and ``registry_auth``. A variable whose
name says that it is a secret (``HF_TOKEN``, ``API_KEY``) is not put in either: it is passed on as
a bare name where that says the same, and refused elsewhere.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.frozen import frozen
from orchestrator.spec.tree import Entries, Entry, Items, Node, Scalar, Source, resolve

_REFERENCE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_NAMED = re.compile(r"(env|secrets)\.([A-Za-z_][A-Za-z0-9_-]*)", re.ASCII)
_SECRET_WORD = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)(?:$|_)", re.I)
_KEEPS_SECRETS = frozenset(("env", "registry_auth"))


class AnyVariables(Mapping[str, str]):
    """An environment in which every variable is set, for those whom its values do not concern.

    >>> AnyVariables(lambda name: name.lower())["HOME"]
    'home'
    """

    def __init__(self, value: Callable[[str], str]) -> None:
        self._value = value

    def __getitem__(self, name: str) -> str:
        return self._value(name)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


def looks_secret(name: str) -> bool:
    """Say whether a variable's name says that its value is a secret.

    >>> looks_secret("HF_TOKEN"), looks_secret("TOKENIZERS_PARALLELISM")
    (True, False)
    """
    return _SECRET_WORD.search(name) is not None


def refers_to_secret(text: str) -> bool:
    """Say whether ``text`` holds a reference that is filled in when a container starts.

    >>> refers_to_secret("Bearer ${{ secrets.API }}"), refers_to_secret("plain")
    (True, False)
    """
    return any(found[1].startswith("secrets.") for found in _REFERENCE.finditer(text))


def is_secret_name(name: str) -> bool:
    """Say whether a spec can refer to a secret of this name.

    >>> is_secret_name("HF_TOKEN"), is_secret_name("two words")
    (True, False)
    """
    return _NAMED.fullmatch(f"secrets.{name}") is not None


def secrets_in(text: str) -> tuple[str, ...]:
    """Return the names of the secrets that ``text`` refers to.

    >>> secrets_in("Bearer ${{ secrets.API }}")
    ('API',)
    """
    named = (_NAMED.fullmatch(found[1]) for found in _REFERENCE.finditer(text))
    return tuple(found[2] for found in named if found and found[1] == "secrets")


@frozen
class Interpolation:
    """Puts the environment and the run's arguments into trees; what cannot be is a problem."""

    source: Source
    env: Mapping[str, str]
    args: Sequence[str]

    def document(self, root: Node) -> tuple[Node, frozenset[str]]:
        """Return ``root`` with its references filled in, and the keys where one could not be."""
        if not isinstance(root, Entries):
            return root, frozenset()
        filled: dict[str, Entry] = {}
        failed: set[str] = set()
        for key, entry in root.entries.items():
            before = len(self.source.problems.found)
            filled[key] = replace(entry, node=self._field(key, entry.node))
            if len(self.source.problems.found) > before:
                failed.add(key)
        return replace(root, entries=filled), frozenset(failed)

    def _field(self, key: str, node: Node) -> Node:
        if key == "env":
            node = _with_bare_names(node)
        return self._node(node, keeps_secrets=key in _KEEPS_SECRETS)

    def _node(self, node: Node, *, keeps_secrets: bool) -> Node:
        if isinstance(node, Scalar):
            return self._scalar(node, keeps_secrets)
        if isinstance(node, Items):
            items = tuple(self._node(item, keeps_secrets=keeps_secrets) for item in node.items)
            return replace(node, items=items)
        entries = {
            key: replace(entry, node=self._node(entry.node, keeps_secrets=keeps_secrets))
            for key, entry in node.entries.items()
        }
        return replace(node, entries=entries)

    def _scalar(self, scalar: Scalar, keeps_secrets: bool) -> Scalar:
        if "${{" not in scalar.text:
            return scalar
        closed = max((found.end() for found in _REFERENCE.finditer(scalar.text)), default=0)
        if (begin := scalar.text.find("${{", closed)) >= 0:
            what, fix = "this reference has no end", "close it with '}}'"
            self.source.add(*self.source.place(scalar, begin), what, fix)
            return scalar
        text = _REFERENCE.sub(lambda found: self._value(scalar, found, keeps_secrets), scalar.text)
        if scalar.style or not _REFERENCE.fullmatch(scalar.text):
            return replace(scalar, text=text, value=text)
        try:
            # ``replicas: ${{ env.N }}`` is a number, as if it had been written there
            return replace(scalar, text=text, value=resolve(text))
        except ValueError:
            return replace(scalar, text=text, value=text)

    def _value(self, scalar: Scalar, found: re.Match[str], keeps_secrets: bool) -> str:
        if found[1] == "run.args":
            return shlex.join(self.args)
        named = _NAMED.fullmatch(found[1])
        kind, name = (named[1], named[2]) if named else ("", found[1][:60])
        if kind == "secrets" and keeps_secrets:
            return found[0]
        if kind == "env" and name in self.env and not looks_secret(name):
            return self.env[name]
        what, fix = _refusal(kind, name)
        self.source.add(*self.source.place(scalar, found.start()), what, fix)
        return found[0]


def _refusal(kind: str, name: str) -> tuple[str, str]:
    """Say why a reference cannot be filled in, and what to do."""
    if kind == "secrets":
        return "a secret can only stand in env and registry_auth", "put it into env and use the variable"
    if kind == "env" and looks_secret(name):
        fix = f"write ${{{{ secrets.{name} }}}}, or the bare name {name} in env"
        return f"the value of {name!r} would be written into plans", fix
    if kind == "env":
        return f"{name!r} is not set in the environment", f"export {name}=…"
    return f"unknown reference {name!r}", "write ${{ env.NAME }}, ${{ secrets.NAME }} or ${{ run.args }}"


def _with_bare_names(env: Node) -> Node:
    """Return ``env`` with ``HF_TOKEN: ${{ env.HF_TOKEN }}`` written as the bare name it means."""
    if isinstance(env, Entries):
        entries = {
            name: replace(entry, node=replace(entry.node, text="", value=None))
            if isinstance(entry.node, Scalar) and _says_itself(name, entry.node.text)
            else entry
            for name, entry in env.entries.items()
        }
        return replace(env, entries=entries)
    if isinstance(env, Items):
        return replace(env, items=tuple(_bare_item(item) for item in env.items))
    return env


def _bare_item(item: Node) -> Node:
    if not isinstance(item, Scalar):
        return item
    name, _, text = item.text.partition("=")
    return replace(item, text=name, value=name) if _says_itself(name, text) else item


def _says_itself(name: str, text: str) -> bool:
    found = _REFERENCE.fullmatch(text.strip())
    return found is not None and found[1] == f"env.{name}" and looks_secret(name)
