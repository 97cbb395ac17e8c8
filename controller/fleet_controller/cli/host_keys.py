"""Unknown host keys: shown with their fingerprint, taken only from a person at a terminal. `--yes` takes none."""

import shlex
import sys
from typing import Any

from fleet_controller.cli.output import can_ask
from fleet_proto.v1 import controller_pb2


async def answer_host_keys(controller: Any, finished: list[controller_pb2.HostEvent]) -> list[str]:
    """Ask about every key that events carry, write accepted ones down; returns the hosts to try again.

    Where nobody can be asked, the command that shows and accepts the key is printed, and the host stays failed.
    """
    again = []
    for event in finished:
        if not event.HasField("host_key"):
            continue
        question = event.host_key
        if not can_ask():
            explain(question)
        elif _accepted(question):
            await controller.TrustHostKey(controller_pb2.TrustHostKeyRequest(question=question))
            again.append(event.host)
    return again


def explain(question: controller_pb2.HostKeyQuestion) -> None:
    """Print what a person has to do where there is no terminal to ask on."""
    port = f"-p {question.port} " if question.port not in (0, 22) else ""
    address = shlex.quote(question.address)
    print(f"error: {_described(question)} is not known, and there is no terminal to ask on", file=sys.stderr)
    print(
        f"  next: compare the fingerprint with `ssh-keyscan {port}{address} | ssh-keygen -lf -` run on the host's own "
        f"network, then accept it with: ssh {port}{address} true",
        file=sys.stderr,
    )


def _described(question: controller_pb2.HostKeyQuestion) -> str:
    return f"{question.host}: the {question.key_type} key {question.fingerprint} of {question.address}"


def _accepted(question: controller_pb2.HostKeyQuestion) -> bool:
    print(
        f"\n{question.host}: nobody has vouched for the host key of {question.address} port {question.port}:",
        file=sys.stderr,
    )
    print(f"  {question.key_type} {question.fingerprint}", file=sys.stderr)
    print("  compare it on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", file=sys.stderr)
    print(f"write it to {question.known_hosts_path} and go on? (yes/no) ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"
