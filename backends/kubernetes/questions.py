"""What a kubelet asks a container: by itself where it can, else by a command within the container."""

from __future__ import annotations

from typing import Any

from orchestrator.backend import Probe

Json = dict[str, Any]

SHELL = r"""
ask=$1 method=$2 body=$3 seconds=$4; shift 4
if command -v curl >/dev/null; then
  for field; do shift; set -- "$@" -H "$field"; done
  [ -z "$body" ] || set -- "$@" --data-raw "$body"
  exec curl -sSf -o /dev/null -m "$seconds" -X "$method" "$@" "$ask"
fi
for python in python3 python; do
  if command -v $python >/dev/null; then
    exec $python -c "$PYTHON" "$ask" "$method" "$body" "$seconds" "$@"
  fi
done
if command -v wget >/dev/null; then
  case $method in
    GET | POST) ;;
    *) echo "a probe with $method takes curl or python in the image"; exit 1 ;;
  esac
  for field; do shift; set -- "$@" --header "$field"; done
  [ "$method" = GET ] || set -- "$@" --post-data "$body"
  case $(wget --help 2>&1) in *--tries*) set -- "$@" -t 1 -T "$seconds" ;; esac
  exec wget -q -O /dev/null "$@" "$ask"
fi
echo "this probe takes curl, python or wget in the image"
exit 1
"""
PYTHON = """\
import http.client, sys
ask, method, body, seconds, *fields = sys.argv[1:]
_, _, place, path = ask.split("/", 3)
asked = http.client.HTTPConnection(place, timeout=float(seconds))
asked.request(method, "/" + path, body or None, dict(field.split(": ", 1) for field in fields))
status = asked.getresponse().status
sys.exit(0 if 200 <= status < 400 else "HTTP %d" % status)
"""


def question(probe: Probe) -> Json:
    """Return the part of a container's probe that says what is asked.

    A kubelet asks by GET alone (Kubernetes' docs, concepts/configuration/liveness-readiness-startup-probes):
    what takes another method or a body, such as the first token of an answer, is asked by a command.
    """
    if probe.kind == "tcp":
        return {"tcpSocket": {"port": probe.port}}
    if probe.method != "GET" or probe.body:
        return {"exec": {"command": command(probe)}}
    asked: Json = {"path": probe.path, "port": probe.port}
    if probe.headers:
        asked["httpHeaders"] = [{"name": name, "value": value} for name, value in probe.headers]
    return {"httpGet": asked}


def command(probe: Probe) -> list[str]:
    """Return the command that asks ``probe`` and ends with 0 on an answer below 400.

    It takes a shell, and curl, Python or wget, whichever the image has. Busybox's wget waits for as
    long as the kubelet lets it: some builds crash where they are told how long.
    """
    fields = [f"{name}: {value}" for name, value in probe.headers]
    asked = f"http://127.0.0.1:{probe.port}{probe.path}"
    shell = f"PYTHON='{PYTHON}'\n{SHELL.strip()}\n"
    return [
        "sh",
        "-c",
        shell,
        "probe",
        asked,
        probe.method,
        probe.body or "",
        f"{probe.timeout_s:g}",
        *fields,
    ]
