"""The short forms of a spec: text such as ``H100:2`` or ``4..8`` turned into the long form.

Each function takes the value as YAML gave it. A short form comes back as the long one; a value
that is already long comes back as it is, for the model to check. What cannot be read raises
``FormError``, whose ``offset`` points into the text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

from orchestrator.units import format_duration, parse_bytes, parse_duration

VENDORS: Mapping[str, str] = {
    "nvidia": "nvidia",
    "amd": "amd",
    "google": "google",
    "tpu": "google",
    "intel": "intel",
    "tenstorrent": "tenstorrent",
    "aws": "aws",
    "apple": "apple",
    "huawei": "huawei",
}
"""Words that name a vendor, and the vendor."""

ARCHITECTURES: Mapping[str, str] = {
    "x86": "x86",
    "amd64": "x86",
    "x86_64": "x86",
    "arm": "arm",
    "arm64": "arm",
    "aarch64": "arm",
}
"""Words that name a CPU architecture, and how the planner spells it."""

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
MAX_PORT = 65_535
_LOOK_ALIKE = str.maketrans("oil", "011")
"""Letters and digits that are one to the eye: H1OO is a slip for H100."""
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"\d{1,18}(?:\.\d{1,9})?", re.ASCII)
_PORTS = re.compile(r"(?:(\d{1,9}|\*):)?(\d{1,9})", re.ASCII)


class FormError(ValueError):
    """A short form that cannot be read.

    ``fix`` says what to write instead; ``offset`` is the index in the text where it goes wrong,
    ``item`` the index in the list.
    """

    def __init__(
        self, what: str, fix: str | None = None, *, offset: int = 0, item: int | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.offset = offset
        self.item = item


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: object) -> str:
    """Return how a message names ``value``, in YAML's words.

    >>> shown("two"), shown(2), shown(True), shown(None), shown([1])
    ("'two'", '2', 'true', 'nothing', 'a list')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return str(value)


# --- ranges ---------------------------------------------------------------------------------


def _whole(text: str, offset: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise FormError(
            f"expected a whole number, got {shown(text)}",
            "write a number or a range, for example 2 or 1..4",
            offset=offset,
        )
    return int(text)


def _decimal(text: str, offset: int) -> float:
    if not _DECIMAL.fullmatch(text):
        raise FormError(
            f"expected a number, got {shown(text)}",
            "write a number or a range, for example 0.5 or 2..8",
            offset=offset,
        )
    return float(text)


def _bytes(text: str, offset: int) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise FormError(str(error), _with_unit(text.strip()), offset=offset) from None


def _with_unit(text: str) -> str | None:
    """Return how to write a size whose unit is missing, or short as elsewhere.

    >>> _with_unit("16"), _with_unit("80G"), _with_unit("64Gi")
    ('write 16GB or 16GiB', 'write 80GB or 80GiB', 'write 64GiB')
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([kmgtKMGT]?)(i?)", text, re.ASCII)
    if not found:
        return None
    number, unit = found[1], found[2].upper() or "G"
    return f"write {number}{unit}iB" if found[3] else f"write {number}{unit}B or {number}{unit}iB"


def _range(text: str, read: Callable[[str, int], float], *, offset: int = 0) -> dict[str, float]:
    """Return the ends of ``a..b``, ``a..``, ``..b`` or ``a`` as ``min`` and ``max``."""
    low, dots, high = text.partition("..")
    if not dots:
        one = read(text.strip(), offset)
        return {"min": one, "max": one}
    ends: dict[str, float] = {}
    if low.strip():
        ends["min"] = read(low.strip(), offset)
    if high.strip():
        ends["max"] = read(high.strip(), offset + len(low) + 2)
    if not ends:
        raise FormError("a range needs at least one end", "for example 2.. or ..8", offset=offset)
    if "min" in ends and "max" in ends and ends["min"] > ends["max"]:
        fix = f"write {high.strip()}..{low.strip()}"
        raise FormError(f"the range {text.strip()!r} ends before it begins", fix, offset=offset)
    return ends


def _exactly(value: float) -> dict[str, float]:
    if value < 0:
        raise FormError(f"expected at least 0, got {value}")
    return {"min": value, "max": value}


def expand_int_range(value: object) -> object:
    """Return ``2``, ``1..4``, ``2..`` or ``..4`` as ``{min, max}``.

    Raises:
        FormError: the text is no range of whole numbers.

    >>> expand_int_range("1..4"), expand_int_range(2), expand_int_range("4..")
    ({'min': 1, 'max': 4}, {'min': 2, 'max': 2}, {'min': 4})
    """
    if isinstance(value, str):
        return _range(value, _whole)
    if isinstance(value, float):
        raise FormError(f"expected a whole number, got {value}")
    if isinstance(value, int) and not isinstance(value, bool):
        return _exactly(value)
    return value


def expand_float_range(value: object) -> object:
    """Return ``0.5``, ``2..8`` or ``2..`` as ``{min, max}``.

    Raises:
        FormError: the text is no range of numbers.

    >>> expand_float_range("0.5..2")
    {'min': 0.5, 'max': 2.0}
    """
    if isinstance(value, str):
        return _range(value, _decimal)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _exactly(value)
    return value


def _sizes(text: str, offset: int = 0) -> dict[str, str]:
    return {end: f"{size}B" for end, size in _range(text, _bytes, offset=offset).items()}


def expand_byte_range(value: object) -> object:
    """Return ``16GB``, ``24GB..80GB`` or ``16GB..`` as ``{min, max}``, each with its unit.

    Raises:
        FormError: the text is no size, or its unit is missing.

    >>> expand_byte_range("24GB..80GB")
    {'min': '24000000000B', 'max': '80000000000B'}
    """
    if isinstance(value, str):
        return _sizes(value)
    if _is_number(value):
        raise FormError(f"expected a size with its unit, got {value}", f"write {value}GB or {value}GiB")
    return value


def read_bytes(value: object) -> object:
    """Return the bytes of ``16GB``; a bare number is refused, for nobody knows its unit.

    Raises:
        FormError: the value is no size, or its unit is missing.

    >>> read_bytes("512MiB")
    536870912
    """
    if isinstance(value, str):
        return _bytes(value, 0)
    if _is_number(value):
        raise FormError(f"expected a size with its unit, got {value}", f"write {value}GB or {value}GiB")
    return value


# --- durations ------------------------------------------------------------------------------


def read_seconds(value: object) -> object:
    """Return the seconds of ``90s``, ``5m``, ``1h30m``; a bare whole number counts seconds.

    Raises:
        FormError: the text is no duration.

    >>> read_seconds("5m"), read_seconds(90)
    (300, 90)
    """
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as error:
            raise FormError(str(error), _shorter(value)) from None
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 0:
        raise FormError(f"expected a duration such as 90s, 5m, 2h, 1d or 1w, got {value}")
    return read_seconds(str(value))


def _shorter(text: str) -> str | None:
    """Return how to write a duration whose unit is a word, or that has a fraction.

    >>> _shorter("12 hours"), _shorter("1.5h")
    ('write 12h', 'write 1h30m')
    """
    if part := re.fullmatch(r"(\d{1,6}\.\d{1,6})\s*([mhdw])", text.strip(), re.ASCII):
        return f"write {format_duration(float(part[1]) * parse_duration(f'1{part[2]}'))}"
    found = re.fullmatch(r"(\d+)\s*(sec|min|hour|hr|day|week)\w*", text.strip(), re.ASCII | re.IGNORECASE)
    return f"write {found[1]}{found[2][0].lower()}" if found else None


def read_limit(value: object) -> object:
    """Return the seconds of a duration, or None for ``off``, which means no limit.

    Raises:
        FormError: the text is neither.

    >>> read_limit("2h"), read_limit("off"), read_limit(False)
    (7200, None, None)
    """
    if value is False or (isinstance(value, str) and value.strip().lower() == "off"):
        return None
    return read_seconds(value)


# --- resources ------------------------------------------------------------------------------


def expand_cpu(value: object) -> object:
    """Return ``8``, ``8..`` or ``arm:8..`` as ``{arch, count}``.

    Raises:
        FormError: the text names no architecture or count.

    >>> expand_cpu("arm:8..")
    {'arch': 'arm', 'count': {'min': 8.0}}
    """
    if _is_number(value):
        return {"count": value}
    if not isinstance(value, str):
        return value
    found: dict[str, object] = {}
    for token, offset in _tokens(value):
        if token.lower() in ARCHITECTURES:
            _once(found, "arch", ARCHITECTURES[token.lower()], token, offset)
        else:
            _once(found, "count", _range(token, _decimal, offset=offset), token, offset)
    return found


def read_architecture(value: object) -> object:
    """Return a CPU architecture as the planner spells it; what is unknown comes back as it is.

    >>> read_architecture("arm64")
    'arm'
    """
    return ARCHITECTURES.get(value.lower(), value) if isinstance(value, str) else value


def read_vendor(value: object) -> object:
    """Return the vendor that a word names; what is unknown comes back as it is.

    >>> read_vendor("TPU")
    'google'
    """
    return VENDORS.get(value.lower(), value) if isinstance(value, str) else value


def _tokens(text: str) -> list[tuple[str, int]]:
    """Return the parts of ``text`` between colons, each with its offset."""
    parts: list[tuple[str, int]] = []
    start = 0
    for raw in text.split(":"):
        token = raw.strip()
        offset = start + len(raw) - len(raw.lstrip())
        if not token:
            raise FormError(f"an empty part in {shown(text)}", "remove the colon", offset=offset)
        parts.append((token, offset))
        start += len(raw) + 1
    return parts


def _once(found: dict[str, object], key: str, value: object, token: str, offset: int) -> None:
    if key in found:
        raise FormError(f"{shown(token)} is a second {key}", f"one {key} is enough", offset=offset)
    found[key] = value


def expand_gpu(value: object, known: Mapping[str, str] | None = None) -> object:
    """Return a GPU's short form as ``{vendor, name, count, memory}``; its parts come in any order.

    Args:
        value: What the YAML says.
        known: Names of accelerators in lower case, and how each is spelled; None checks no name.

    Raises:
        FormError: a part is no vendor, name, memory or count, or comes twice.

    >>> expand_gpu("amd:MI300X:8")
    {'vendor': 'amd', 'name': ('MI300X',), 'count': {'min': 8, 'max': 8}}
    >>> expand_gpu("24GB..80GB:2")
    {'memory': {'min': '24000000000B', 'max': '80000000000B'}, 'count': {'min': 2, 'max': 2}}
    """
    if isinstance(value, int) and not isinstance(value, bool):
        _refuse_name_as_count(str(value), 0, known)
        return {"count": value}
    if not isinstance(value, str):
        return value
    found: dict[str, object] = {}
    tokens = _tokens(value)
    for token, offset in tokens:
        if token.lower() in VENDORS:
            _once(found, "vendor", VENDORS[token.lower()], token, offset)
        elif not (token[0].isdigit() or token.startswith("..")):
            _refuse_count_in_words(found, token, offset, known)
            _once(found, "name", _names(token, offset, known), token, offset)
        elif any(c.isalpha() for c in token):
            if meant := _counted(token, known or {}):
                raise FormError(f"unknown accelerator {shown(token)}", meant, offset=offset)
            _once(found, "memory", _sizes(token, offset), token, offset)
        else:
            _refuse_name_as_count(token, offset, known)
            _once(found, "count", _range(token, _whole, offset=offset), token, offset)
    return found


def _refuse_name_as_count(token: str, offset: int, known: Mapping[str, str] | None) -> None:
    """Take ``4090`` for a name that lacks its letters: no machine has so many accelerators."""
    if name := (known or {}).get(f"rtx{token}"):
        raise FormError(f"{token} is a count of accelerators here", f"write {name}", offset=offset)


def _refuse_count_in_words(
    found: Mapping[str, object], token: str, offset: int, known: Mapping[str, str] | None
) -> None:
    """Take ``two`` in ``24GB:two`` for a slip: accelerators have digits in their names, or are known."""
    if found and token.isalpha() and token.lower() not in (known or {}):
        what = f"expected a count such as 2 or 1..4, got {shown(token)}"
        raise FormError(what, "write the count in digits", offset=offset)


def _names(token: str, offset: int, known: Mapping[str, str] | None) -> tuple[str, ...]:
    names: list[str] = []
    for raw in token.split(","):
        name = raw.strip()
        if not name:
            raise FormError(f"an empty name in {shown(token)}", "remove the comma", offset=offset)
        check_accelerator(name, known, offset=offset)
        names.append(name)
        offset += len(raw) + 1
    return tuple(names)


def check_accelerator(
    name: str, known: Mapping[str, str] | None, *, offset: int = 0, item: int | None = None
) -> None:
    """Refuse an accelerator that is not in ``known`` (lower case to spelling); None knows all.

    A slice of a TPU, such as ``v5litepod-8``, is known by its generation.

    Raises:
        FormError: the name is unknown; its fix has the nearest one.

    >>> check_accelerator("H1OO", {"h100": "H100"})
    Traceback (most recent call last):
    orchestrator.spec.forms.FormError: unknown accelerator 'H1OO'
    """
    low = name.lower()
    if known is None or low in known or re.sub(r"-\d+$", "", low) in known:
        return
    guess = _counted(name, known) or nearest_accelerator(name, known)
    raise FormError(f"unknown accelerator {shown(name)}", guess, offset=offset, item=item)


def _counted(text: str, known: Mapping[str, str]) -> str | None:
    """Return how to write a known accelerator whose count or vendor is written in another way.

    >>> _counted("8xH100", {"h100": "H100"}), _counted("NVIDIA H100", {"h100": "H100"})
    ('write H100:8', 'write nvidia:H100')
    """
    for form in (r"(?P<count>\d+)\s*[x*×]?\s*(?P<name>.+)", r"(?P<name>.+?)\s*[x*×]\s*(?P<count>\d+)"):
        found = re.fullmatch(form, text, re.ASCII | re.IGNORECASE)
        if found and found["name"].lower() in known:
            return f"write {found['name']}:{found['count']}"
    vendor, *name = re.split(r"[-_ ]", text, maxsplit=1)
    if name and vendor.lower() in VENDORS and name[0].lower() in known:
        return f"write {vendor.lower()}:{name[0]}"
    return None


def nearest_accelerator(name: str, known: Mapping[str, str]) -> str | None:
    """Return "did you mean …?" with the nearest of ``known``, where an O counts as a 0.

    >>> nearest_accelerator("H1OO", {"h100": "H100", "l4": "L4"})
    "did you mean 'H100'?"
    """
    seen = {key.translate(_LOOK_ALIKE): spelling for key, spelling in known.items()}
    return nearest(name.lower().translate(_LOOK_ALIKE), seen)


def nearest(word: str, words: Mapping[str, str]) -> str | None:
    """Return "did you mean …?" with the nearest of ``words`` (spelling by key), or None.

    >>> nearest("cuont", {"count": "count", "name": "name"})
    "did you mean 'count'?"
    """
    import difflib  # only a mistake needs it

    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {words[near[0]]!r}?" if near else None


def expand_capability(value: object) -> object:
    """Return a compute capability such as ``7.5`` or ``"9.0"`` as ``(7, 5)``.

    Raises:
        FormError: the value is no capability.

    >>> expand_capability(8.9), expand_capability("10.0")
    ((8, 9), (10, 0))
    """
    text = str(value) if _is_number(value) else value
    if not isinstance(text, str):
        return value
    found = re.fullmatch(r"(\d{1,2})(?:\.(\d))?", text.strip(), re.ASCII)
    if not found:
        raise FormError(f"expected a compute capability such as 8.0, got {shown(value)}")
    return int(found[1]), int(found[2] or 0)


# --- ports, environment, mounts, files ------------------------------------------------------


def _port(text: str, offset: int) -> int:
    number = int(text)
    if not 1 <= number <= MAX_PORT:
        raise FormError(f"a port is between 1 and {MAX_PORT}, got {number}", offset=offset)
    return number


def _port_pair(value: object, *, same: bool) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    found = _PORTS.fullmatch(value.strip())
    if not found:
        raise FormError(f"expected a port such as 8000, 80:8080 or '*:8080', got {shown(value)}")
    inner = _port(found[2], found.start(2))
    if found[1] is None:
        return {"container_port": inner, "local_port": inner if same else None}
    outer = None if found[1] == "*" else _port(found[1], 0)
    return {"container_port": inner, "local_port": outer}


def expand_port(value: object) -> object:
    """Return ``8000``, ``80:8080`` or ``*:8080`` as ``{local_port, container_port}``.

    A single number is both; ``*`` leaves the local port to the place that runs it.

    Raises:
        FormError: the value is no port, or out of range.

    >>> expand_port("80:8080"), expand_port("*:8080")
    ({'container_port': 8080, 'local_port': 80}, {'container_port': 8080, 'local_port': None})
    """
    return _port_pair(value, same=True)


def expand_service_port(value: object) -> object:
    """Return a service's port, whose local side stays open unless it is given.

    Replicas of one service may share a machine, where one local port cannot serve them all.

    Raises:
        FormError: the value is no port, or out of range.

    >>> expand_service_port(8000)
    {'container_port': 8000, 'local_port': None}
    """
    return _port_pair(value, same=False)


def expand_env(value: object) -> object:
    """Return environment variables as a mapping; a bare ``NAME`` has the value None.

    Raises:
        FormError: an entry is no ``NAME=value`` or ``NAME``, or a name comes twice.

    >>> expand_env(["A=1", "HF_TOKEN"])
    {'A': '1', 'HF_TOKEN': None}
    """
    if isinstance(value, Mapping):
        for name in value:
            _env_name(name)
        return value
    if not isinstance(value, list | tuple):
        return value
    found: dict[str, str | None] = {}
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            what = f"expected NAME=value or NAME, got {shown(entry)}"
            raise FormError(what, "for example DEBUG=1", item=index)
        name, equals, text = entry.partition("=")
        if _env_name(name, item=index) in found:
            raise FormError(f"{name!r} is set twice", "keep one of them", item=index)
        found[name] = text if equals else None
    return found


def _env_name(name: object, *, item: int | None = None) -> str:
    if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
        fix = "letters, digits and underscores, not beginning with a digit"
        raise FormError(f"{shown(name)} is no name of an environment variable", fix, item=item)
    return name


def expand_mount(value: object) -> object:
    """Return ``volume:/path``, ``/host:/path`` or ``./folder:/path:ro`` as the long form.

    Raises:
        FormError: the text is no pair, or its second part is not absolute.

    >>> expand_mount("cache:/cache"), expand_mount("./data:/data")
    ({'name': 'cache', 'path': '/cache'}, {'instance_path': './data', 'path': '/data'})
    """
    if not isinstance(value, str):
        return value
    parts = value.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts) or parts[1].startswith("//"):
        fix = "for example cache:/cache, ./data:/data or ./data:/data:ro"
        raise FormError(f"expected SOURCE:/path, got {shown(value)}", fix)
    source, target, mode = (*parts, "rw")[:3]
    if mode not in ("ro", "rw"):
        offset = len(source) + len(target) + 2
        raise FormError(f"expected ro or rw, got {shown(mode)}", "remove it, or write ro", offset=offset)
    is_folder = source.startswith(("/", ".", "~"))
    long: dict[str, object] = {"instance_path" if is_folder else "name": source, "path": target}
    return {**long, "read_only": True} if mode == "ro" else long


def expand_file(value: object) -> object:
    """Return ``local[:path]`` as ``{local_path, path}``.

    Raises:
        FormError: a part is empty.

    >>> expand_file("train.py"), expand_file("~/.netrc:/home/me/.netrc")
    ({'local_path': 'train.py'}, {'local_path': '~/.netrc', 'path': '/home/me/.netrc'})
    """
    if not isinstance(value, str):
        return value
    local, colon, path = value.partition(":")
    if not local or (colon and not path):
        fix = "for example train.py or train.py:/app/train.py"
        raise FormError(f"expected LOCAL or LOCAL:PATH, got {shown(value)}", fix)
    return {"local_path": local, "path": path} if colon else {"local_path": local}


def expand_repo(value: object) -> object:
    """Return a repository's URL or folder, with an optional ``:path``, as the long form.

    Raises:
        FormError: the text is empty.

    >>> expand_repo("https://github.com/org/repo:/src")
    {'url': 'https://github.com/org/repo', 'path': '/src'}
    >>> expand_repo("git@github.com:org/repo.git"), expand_repo(".")
    ({'url': 'git@github.com:org/repo.git'}, {'local_path': '.'})
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"((?:[a-z+]+://[^/\s]+/|[\w.-]+@[\w.-]+:)?[^:\s]+)(?::(\S+))?", value.strip())
    if not found:
        fix = "for example https://github.com/org/repo or .:/src"
        raise FormError(f"expected a repository, got {shown(value)}", fix)
    remote = "://" in found[1] or "@" in found[1]
    long = {"url" if remote else "local_path": found[1]}
    return {**long, "path": found[2]} if found[2] else long


def split_words(value: object) -> object:
    """Return the words of a command line written as one text, as a shell would split it.

    Raises:
        FormError: a quote is not closed.

    >>> split_words("sh -c 'echo hi'")
    ('sh', '-c', 'echo hi')
    """
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError:
        raise FormError(f"a quote is not closed in {shown(value)}", "close it, or write a list") from None


def wrap_one(value: object) -> object:
    """Return a lone text as a tuple of one, so that a list of one can be written without brackets.

    >>> wrap_one("aws"), wrap_one(["aws"])
    (('aws',), ['aws'])
    """
    return (value,) if isinstance(value, str) else value


# --- schedules ------------------------------------------------------------------------------

_CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_NAMES = {name: number for number, name in [*enumerate(_MONTHS, 1), *enumerate(_WEEKDAYS)]}
_CRON_PIECE = re.compile(r"(?:\*|(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?)(?:/(\d{1,2}))?", re.ASCII)


def check_cron(line: str) -> None:
    """Refuse what is no cron line of five fields.

    Raises:
        FormError: there are not five fields, one is out of its range, or no day is ever named.

    >>> check_cron("*/15 0-6,22 * * mon-fri")
    """
    parts = line.split()
    if len(parts) != len(_CRON_FIELDS):
        what = f"a cron line has {len(_CRON_FIELDS)} fields, {shown(line)} has {len(parts)}"
        raise FormError(what, "for example 0 3 * * *")
    for part, (field, low, high) in zip(parts, _CRON_FIELDS, strict=True):
        if not all(_is_cron_piece(piece, low, high) for piece in part.lower().split(",")):
            raise FormError(f"{shown(part)} is no {field}", f"{low} to {high}, or *")
    _, _, days, months, weekdays = (part.lower() for part in parts)
    # where both name days either will do, unless one of them begins with a star (cron(5) of Debian)
    if "*" in (days[0], weekdays[0]) and not _has_day(days, months):
        raise FormError(f"{shown(line)} never comes: no month it names has such a day", "check day and month")


_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _has_day(days: str, months: str) -> bool:
    """Return whether a month that is named has a day that is named, in a leap year at least."""
    named = _cron_numbers(days, 1, 31)
    return any(min(named) <= _LENGTHS[month - 1] for month in _cron_numbers(months, 1, 12))


def _cron_numbers(part: str, low: int, high: int) -> set[int]:
    """Return the numbers that a field of a cron line stands for.

    >>> sorted(_cron_numbers("1-9/4,30", 1, 31)), sorted(_cron_numbers("*/6", 1, 12))
    ([1, 5, 9, 30], [1, 7])
    """
    found: set[int] = set()
    for piece in part.split(","):
        ends, _, step = piece.partition("/")
        first, _, last = ends.partition("-")
        begin = low if first == "*" else _cron_number(first)
        end = high if first == "*" or (step and not last) else _cron_number(last or first)
        found.update(range(begin, end + 1, int(step or 1)))
    return found


def _cron_number(end: str) -> int:
    return _CRON_NAMES.get(end, int(end) if end.isdigit() else -1)


def _is_cron_piece(piece: str, low: int, high: int) -> bool:
    found = _CRON_PIECE.fullmatch(piece)
    if found is None or found[3] == "0":
        return False
    ends = [_cron_number(end) for end in found.groups()[:2] if end]
    return ends == sorted(ends) and all(low <= end <= high for end in ends)
