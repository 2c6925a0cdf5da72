"""What ``ssh`` says when it fails, as errors that name the host and say what to do.

Its exit code is 255 for all of them, so the words are all there is. They are those of OpenSSH
8.9 to 10.
"""

from __future__ import annotations

from backends.ssh.options import Host
from orchestrator.errors import AuthFailed, BackendError, Unreachable


def explained(text: str, host: Host, *, backend: str) -> BackendError:
    """Return what a failed connection to ``host`` means.

    >>> from backends.ssh.options import Login
    >>> host = Host("gpu-1", Login("gpu-1", user="ops"))
    >>> explained("ops@gpu-1: Permission denied (publickey).", host, backend="rack").what
    "host 'gpu-1' refuses the login of 'ops'"
    """
    name, login = f"host '{host.name}'", host.login
    if "IDENTIFICATION HAS CHANGED" in text:
        return AuthFailed(
            f"the key of {name} has changed since it was last seen",
            backend=backend,
            fix=f"make sure that it is the same machine, then: ssh-keygen -R '{_known_as(host)}'",
        )
    if "Host key verification failed" in text or "host key is known for" in text:
        return AuthFailed(
            f"the key of {name} is not known",
            backend=backend,
            fix=f"add it to known_hosts (ssh {login.hostname}), or set host_keys: accept-new",
        )
    if "UNPROTECTED PRIVATE KEY FILE" in text:
        return AuthFailed(
            f"others may read identity_file {login.identity_file}",
            backend=backend,
            fix=f"chmod 600 {login.identity_file}",
        )
    if "Identity file" in text and "not accessible" in text:
        return AuthFailed(
            f"identity_file {login.identity_file} of {name} cannot be read",
            backend=backend,
            fix="correct identity_file, or leave it out to use the agent's keys",
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        who = f" of '{login.user}'" if login.user else ""
        return AuthFailed(
            f"{name} refuses the login{who}",
            backend=backend,
            fix="put the public key into its authorized_keys, or correct user and identity_file",
        )
    return Unreachable(
        f"{name} does not answer over SSH ({_last_line(text)})", backend=backend, fix=_fix(text, host)
    )


def _fix(text: str, host: Host) -> str:
    if "Could not resolve" in text:
        return f"check the spelling of hostname '{host.login.hostname}'"
    if "Connection refused" in text:
        return f"start sshd on '{host.login.hostname}', or correct port"
    if "Bad configuration option" in text or "Bad owner or permissions" in text:
        return "correct the ssh configuration it names"
    return f"look whether this works: ssh {host.login.hostname} true"


def _known_as(host: Host) -> str:
    """Return the host as known_hosts spells it."""
    login = host.login
    return f"[{login.hostname}]:{login.port}" if login.port not in (None, 22) else login.hostname


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "it said nothing"
