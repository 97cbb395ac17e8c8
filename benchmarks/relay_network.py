"""A lab's network: all on the loopback, or a network namespace for each host with a shaped link."""

import json
import secrets
import shlex
import subprocess
from dataclasses import dataclass, field

BRIDGE_PORT_BYTES_LIMIT = 15  # IFNAMSIZ less its closing NUL
HEADER_BYTES = 66  # Ethernet 14, IP 20, TCP with timestamps 32


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Cable:
    """A host's place in the network."""

    address: str
    prefix: tuple[str, ...] = ()
    namespace: str = ""
    link: str = ""


@dataclass(frozen=True)
class SentCount:
    """What an interface sent, as the kernel's shaping counts it: packets as they are on the wire, headers included."""

    wire_bytes: int
    packets: int

    @property
    def payload_bytes(self) -> int:
        """Less the headers of each packet."""
        return self.wire_bytes - self.packets * HEADER_BYTES


class LoopbackNetwork:
    """All hosts at 127.0.0.1: for tests that need no shaping."""

    def connect(self, name: str) -> Cable:
        return Cable("127.0.0.1")

    def destroy(self) -> None:
        pass


@dataclass
class ShapedNetwork:
    """A network namespace for each host, on one bridge; what it sends and what it gets is held to a rate by tc-tbf.

    A rate of 0 shapes nothing.
    """

    rate_bytes_per_second: float
    cables: dict[str, Cable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._id = secrets.token_hex(2)
        self._bridge = f"rly{self._id}"
        self._network = f"10.{secrets.randbelow(90) + 10}.{secrets.randbelow(250)}"
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "address", "add", f"{self._network}.1/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")

    @property
    def bridge_address(self) -> str:
        """This machine, seen from the hosts: where a stand-in of the hub listens."""
        return f"{self._network}.1"

    def connect(self, name: str) -> Cable:
        """The host's cable, made at the first call; two rollouts on one host share it."""
        if name in self.cables:
            return self.cables[name]
        number = len(self.cables)
        namespace, link = f"{self._bridge}-{number}", f"{self._bridge}v{number}"[:BRIDGE_PORT_BYTES_LIMIT]
        address = f"{self._network}.{10 + number}"
        plug_in(namespace, link, self._bridge, address)
        self.cables[name] = Cable(address, ("ip", "netns", "exec", namespace), namespace, link)
        if self.rate_bytes_per_second:
            self.shape(name, self.rate_bytes_per_second)
        return self.cables[name]

    def shape(self, name: str, down_bytes_per_second: float, up_bytes_per_second: float = 0.0) -> None:
        """Rate towards the host and, the same where not given, from it."""
        cable = self.cables[name]
        up = up_bytes_per_second or down_bytes_per_second
        run("tc", "qdisc", "replace", "dev", cable.link, "root", *_bucket(down_bytes_per_second))
        run("tc", "-n", cable.namespace, "qdisc", "replace", "dev", "eth0", "root", *_bucket(up))

    def sent(self, name: str) -> SentCount:
        """By a host so far; only where its link is shaped."""
        (queue,) = json.loads(run("tc", "-n", self.cables[name].namespace, "-s", "-j", "qdisc", "show", "dev", "eth0"))
        return SentCount(queue["bytes"], queue["packets"])

    def cut(self, name: str) -> None:
        """Silently: nothing is told to anybody, packets are lost both ways."""
        run("bridge", "link", "set", "dev", self.cables[name].link, "state", "0")

    def mend(self, name: str) -> None:
        run("bridge", "link", "set", "dev", self.cables[name].link, "state", "3")

    def destroy(self) -> None:
        for cable in self.cables.values():
            run("ip", "netns", "delete", cable.namespace, check=False)
            run("ip", "link", "delete", cable.link, check=False)
        run("ip", "link", "delete", self._bridge, check=False)


def plug_in(namespace: str, link: str, bridge: str, address: str) -> None:
    """A new network namespace, whose eth0 has that address and is `link` on the bridge."""
    run("ip", "netns", "add", namespace)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "link", "set", link, "master", bridge, "up")
    run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    run("ip", "-n", namespace, "link", "set", "eth0", "up")
    run("ip", "-n", namespace, "link", "set", "lo", "up")


def _bucket(bytes_per_second: float) -> list[str]:
    rate = f"{round(bytes_per_second * 8)}bit"
    # Tokens for 10 ms: a timer that a busy machine serves late must not take rate away; and for the largest packet that
    # TCP gives a card to cut (64 KB and its headers), which tbf would cut itself otherwise, with a timer for each part.
    # A queue as a switch's port has.
    burst = max(72_000, round(bytes_per_second * 0.01))
    return ["tbf", "rate", rate, "burst", str(burst), "latency", "50ms"]
