"""References in a spec: ``${{ env.X }}``, ``${{ secrets.X }}`` and ``${{ run.args }}``.

What the environment and the command line say is put in when a spec is loaded. Secrets are not:
they stay references until a container starts, and may only stand where they can stay so, in
``env`` and ``registry_auth``. A variable of the environment stays a reference there too when its
name says that it is a secret (``HF_TOKEN``, ``API_KEY``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import NotFound
from orchestrator.spec.tree import Entries, Items, Node, Scalar, Source, resolve

_REFERENCE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_NAMED = re.compile(r"(env|secrets)\.([A-Za-z_][A-Za-z0-9_-]*)", re.ASCII)
_SECRET_WORD = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)(?:$|_)", re.I)


def looks_secret(name: str) -> bool:
    """Say whether a variable's name says that its value is a secret.

    >>> looks_secret("HF_TOKEN"), looks_secret("TOKENIZERS_PARALLELISM")
    (True, False)
    """
    return _SECRET_WORD.search(name) is not None


@dataclass(slots=True)
class Interpolation:
    """Puts the environment and the run's arguments into trees; what is missing is a problem."""

    source: Source
    env: Mapping[str, str]
    args: Sequence[str]

    def document(self, root: Node) -> Node:
        """Return ``root`` with its references filled in, save those that must stay."""
        if not isinstance(root, Entries):
            return root
        filled = {
            key: replace(entry, node=self._field(key, entry.node)) for key, entry in root.entries.items()
        }
        return replace(root, entries=filled)

    def _field(self, key: str, node: Node) -> Node:
        if key == "registry_auth":
            return self._node(node, may_keep=True, is_secret=True)
        if key != "env":
            return self._node(node)
        if isinstance(node, Entries):
            entries = {
                name: replace(e, node=self._node(e.node, may_keep=True, is_secret=looks_secret(name)))
                for name, e in node.entries.items()
            }
            return replace(node, entries=entries)
        if isinstance(node, Items):
            return replace(node, items=tuple(self._listed(item) for item in node.items))
        return self._node(node)

    def _listed(self, item: Node) -> Node:
        name = item.text.partition("=")[0] if isinstance(item, Scalar) else ""
        return self._node(item, may_keep=True, is_secret=looks_secret(name))

    def _node(self, node: Node, *, may_keep: bool = False, is_secret: bool = False) -> Node:
        if isinstance(node, Scalar):
            return self._scalar(node, may_keep, is_secret)
        if isinstance(node, Items):
            items = (self._node(item, may_keep=may_keep, is_secret=is_secret) for item in node.items)
            return replace(node, items=tuple(items))
        entries = {
            key: replace(e, node=self._node(e.node, may_keep=may_keep, is_secret=is_secret))
            for key, e in node.entries.items()
        }
        return replace(node, entries=entries)

    def _scalar(self, scalar: Scalar, may_keep: bool, is_secret: bool) -> Scalar:
        if "${{" not in scalar.text:
            return scalar
        text = _REFERENCE.sub(lambda found: self._value(scalar, found, may_keep, is_secret), scalar.text)
        whole = not scalar.style and _REFERENCE.fullmatch(scalar.text)
        try:
            # ``replicas: ${{ env.N }}`` is a number, as if it had been written there
            value = resolve(text) if whole else text
        except ValueError:
            value = text
        return replace(scalar, text=text, value=value)

    def _value(self, scalar: Scalar, found: re.Match[str], may_keep: bool, is_secret: bool) -> str:
        line, column = self.source.place(scalar, found.start())
        if found[1] == "run.args":
            return " ".join(_quoted(self.args))
        named = _NAMED.fullmatch(found[1])
        if named is None:
            fix = "write ${{ env.NAME }}, ${{ secrets.NAME }} or ${{ run.args }}"
            self.source.add(line, column, f"unknown reference '{found[1][:60]}'", fix)
        elif named[1] == "secrets":
            if not may_keep:
                fix = "put it into env and use the variable"
                self.source.add(line, column, "a secret can only stand in env and registry_auth", fix)
        elif may_keep and (is_secret or looks_secret(named[2])):
            return f"${{{{ env.{named[2]} }}}}"
        elif named[2] in self.env:
            return self.env[named[2]]
        else:
            self.source.add(
                line, column, f"{named[2]!r} is not set in the environment", f"export {named[2]}=…"
            )
        return found[0]


def _quoted(args: Iterable[str]) -> Iterable[str]:
    import shlex

    return (shlex.quote(arg) for arg in args)


def has_references(text: str) -> bool:
    """Say whether ``text`` holds a reference that is filled in when a container starts.

    >>> has_references("Bearer ${{ secrets.API }}"), has_references("plain")
    (True, False)
    """
    return _REFERENCE.search(text) is not None


def split_env(
    env: Mapping[str, str | None],
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Return the variables that are plain text, and those that hold references, as pairs by name.

    A bare name refers to the environment, and then to the secret store.

    >>> split_env({"A": "1", "HF_TOKEN": None})
    ((('A', '1'),), (('HF_TOKEN', '${{ env.HF_TOKEN }}'),))
    """
    plain: list[tuple[str, str]] = []
    referring: list[tuple[str, str]] = []
    for name, text in sorted(env.items()):
        if text is None:
            referring.append((name, f"${{{{ env.{name} }}}}"))
        else:
            (referring if has_references(text) else plain).append((name, text))
    return tuple(plain), tuple(referring)


def fill(template: str, *, env: Mapping[str, str], secrets: Mapping[str, str]) -> str:
    """Return ``template`` with its references filled in, at the moment a container starts.

    ``env.X`` is looked up in the environment, then among the secrets.

    Raises:
        NotFound: a variable or secret does not exist; the message has its name, never a value.

    >>> fill("Bearer ${{ secrets.API }}", env={}, secrets={"API": "s3cr3t"})
    'Bearer s3cr3t'
    """

    def value(found: re.Match[str]) -> str:
        named = _NAMED.fullmatch(found[1])
        if named is None:
            raise NotFound(f"unknown reference '{found[1][:60]}'")
        places = (env, secrets) if named[1] == "env" else (secrets,)
        for place in places:
            if named[2] in place:
                return place[named[2]]
        where = "secret" if named[1] == "secrets" else "variable or secret"
        raise NotFound(f"no {where} {named[2]!r}", fix=f"modelyard secret set {named[2]}")

    return _REFERENCE.sub(value, template)
