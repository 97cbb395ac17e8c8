"""Why an ssh ended, from what it printed: one line of cause and one of remedy."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    code: str
    message: str


LOGIN_REFUSED = "login-refused"
HOST_KEY = "host-key"
PORT_TAKEN = "port-taken"
FORBIDDEN = "forwarding-forbidden"
BAD_CONFIG = "bad-ssh-config"
NO_SSH = "no-ssh"
UNREACHABLE = "unreachable"
ENDED = "ended"
# Trying again changes nothing until a person did something.
FINAL_CODES = frozenset({LOGIN_REFUSED, HOST_KEY, PORT_TAKEN, FORBIDDEN, BAD_CONFIG, NO_SSH})

# In the words of OpenSSH's sshconnect2.c, sshconnect.c, channels.c and readconf.c; the first that is found counts.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known for", HOST_KEY),
    (r"Permission denied \(|Too many authentication failures", LOGIN_REFUSED),
    (r"Address already in use|cannot listen to port|Privileged ports can only", PORT_TAKEN),
    (r"administratively prohibited", FORBIDDEN),
    (r"Bad configuration option|terminating, \d+ bad configuration|Bad owner or permissions", BAD_CONFIG),
    (
        r"Could not resolve|Connection refused|timed out|No route to host|Network is unreachable|not responding|"
        r"Connection closed|Connection reset|closed by remote|Broken pipe",
        UNREACHABLE,
    ),
)
_NOISE = re.compile(r"^(Warning: |debug\d: |Killed by signal|@+$|\s*$)")


def cause_of(printed: str, exit_code: int) -> Cause:
    """The cause in the words of ssh itself; its last line where nothing is recognised."""
    lines = [line.strip() for line in printed.splitlines() if not _NOISE.match(line.strip())]
    for pattern, code in _PATTERNS:
        for line in reversed(lines):
            if re.search(pattern, line):
                return Cause(code, line)
    said = lines[-1] if lines else "it printed nothing"
    return Cause(ENDED, f"ssh ended with status {exit_code}: {said}")


def remedy_of(code: str, host: str, login: str) -> str:
    """What a user can do; `login` is the ssh command that must work first."""
    return {
        LOGIN_REFUSED: f"make this work first, without a password: {login} true (add the key to ssh-agent, or to the "
        "host's ~/.ssh/authorized_keys)",
        HOST_KEY: f"compare the host's key, then accept it: fleet up {host}",
        PORT_TAKEN: "choose another one with --port, or leave it out",
        FORBIDDEN: "its sshd forbids forwarding (AllowTcpForwarding, or a restrict in authorized_keys): ask whoever "
        "runs it",
        BAD_CONFIG: "correct your ssh_config, or name another file in FLEET_SSH_CONFIG",
        NO_SSH: "install the OpenSSH client",
    }.get(code, f"is it up and its sshd running? try: {login} true")
