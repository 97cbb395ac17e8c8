"""A hub on the internet: a web server in a namespace of its own, whose link is the lab's uplink."""

import json
import subprocess
import sys
import urllib.request

from benchmarks.relay_content import COMMIT, REPOSITORY
from benchmarks.relay_load import MODEL, Load, Uplink
from benchmarks.relay_network import ShapedNetwork

HUB = "hub"
PORT = 8000


class Hub:
    """Serves with Range, and counts."""

    def __init__(self, load: Load, network: ShapedNetwork, rate: float = 0.0) -> None:
        """rate: bytes a second of its link; the load's uplink where not given."""
        cable = network.connect(HUB)
        network.shape(HUB, rate or load.uplink)
        self._network = network
        self.url = f"http://{cable.address}:{PORT}"
        self.file_url = f"{self.url}/{REPOSITORY}/resolve/{COMMIT}/{MODEL}"
        server = [sys.executable, "-m", "benchmarks.range_server", str(load.source), cable.address, str(PORT)]
        self._process = subprocess.Popen([*cable.prefix, *server], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def uplink(self) -> Uplink:
        """What left it so far."""
        interface = self._network.sent(HUB)
        with urllib.request.urlopen(f"{self.url}/counted", timeout=60) as reply:
            return Uplink(json.load(reply)["sent_bytes"], interface)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
