"""The hosts.yaml that `fleet init` writes: commented, and valid as it stands."""

import re
from collections.abc import Sequence

import yaml

from fleet_inventory.base import Frozen
from fleet_inventory.host_file import NAME_PATTERN, Transport, is_address
from fleet_inventory.ssh_config import SshConfigHost


class TemplateHost(Frozen):
    """A host to write down; `remark` becomes a comment."""

    name: str
    address: str | None = None
    transport: Transport | None = None
    groups: tuple[str, ...] = ()
    remark: str = ""


_TOP = """\
## The machines that fleet manages.
##
## A line that starts with one '#' is an example: take the '#' away to use it.
## After a change: 'fleet hosts' shows whether the file is understood and who answers.

## What holds for every host that does not say otherwise.
defaults:
#  user: lab                         # login name; without it, ssh_config decides
#  port: 22                          # SSH port; without it, ssh_config decides
#  jump: lab@gateway.example.org:22  # as in ssh -J; several separated by commas
#  transport: ssh                    # ssh, tls (needs an open port), or local for this machine
#  tls_port: 7443                    # of the agent, for transport tls
#  model_dir: /data/models           # model files that are already on the hosts
#  hub_token: env:HF_TOKEN           # or file:~/.config/fleet/hub-token, of mode 0600; never the token itself
#  environment:                      # for installs, downloads and model servers
#    HF_ENDPOINT: https://hub-mirror.example.org
#    HF_HUB_OFFLINE: 0
#  limits:
#    memory_reserve: 2 GB            # memory of the device that fleet leaves free
#    max_services: 4                 # model servers at the same time
#    ports: 8100-8199                # ports that model servers may take

## A group gives its members a name ('fleet hosts @gpus') and may carry the same settings as 'defaults'.
groups:
#  gpus:
#    environment:
#      CUDA_VISIBLE_DEVICES: 0
#  macs:
#    model_dir: /Users/Shared/models

## The hosts. The name is what you type; the address is a host name, an IP address or an alias of ~/.ssh/config,
## and the name itself where it is not given.
hosts:
"""

_EXAMPLES = """\
#  gpu1:
#    groups: [gpus]
#    labels: {room: b12, owner: alice}   # 'fleet hosts room=b12'
#  gpu2:
#    address: 192.0.2.17
#    port: 2222
#    groups: [gpus]
#    agent_root: /scratch/lab/fleet      # where the agent keeps its files; a local disk is best
#    python: /opt/python3.11/bin/python3 # the Python to install the agent with
#    tools:
#      cmake: /opt/cmake/bin/cmake       # a tool that is not on the PATH there
#  mac1:
#    address: mac1.example.org
#    user: lab
#    groups: [macs]
#    limits: {memory_reserve: 4 GiB}
#  here:
#    transport: local                    # this machine, without SSH
"""


def render_hosts_yaml(hosts: Sequence[TemplateHost] = ()) -> str:
    """The text of a new hosts.yaml with `hosts` in it. Raises ValueError for two hosts of one name."""
    names = [host.name for host in hosts]
    if len(set(names)) != len(names):
        raise ValueError("two hosts have the same name")
    lines = "".join(_entry(host) for host in hosts)
    return _TOP + lines + ("\n## More examples:\n" if hosts else "") + _without(_EXAMPLES, names)


def template_hosts(found: Sequence[SshConfigHost]) -> list[TemplateHost]:
    """Hosts of ssh_config under their alias, or under a name made from it where the alias is no fleet name.

    An alias that hosts.yaml does not take as an address (quotes, slashes) is left out.
    """
    hosts: dict[str, TemplateHost] = {}
    for entry in (entry for entry in found if is_address(entry.alias)):
        name = _free(_as_name(entry.alias), hosts)
        shown = f"{entry.user}@{entry.host_name}" if entry.user and entry.host_name else entry.host_name or ""
        remark = "from ssh_config" + (f": {shown}" if shown else "")
        hosts[name] = TemplateHost(name=name, address=None if name == entry.alias else entry.alias, remark=remark)
    return list(hosts.values())


def _as_name(alias: str) -> str:
    name = alias if re.match(NAME_PATTERN, alias) else re.sub(r"[^A-Za-z0-9._-]+", "-", alias).strip("-._") or "host"
    return "all-hosts" if name == "all" else name


def _free(name: str, taken: dict[str, TemplateHost]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _entry(host: TemplateHost) -> str:
    stated = host.model_dump(mode="json", exclude_none=True, exclude={"name", "remark"}, exclude_defaults=True)
    remark = f"  # {' '.join(host.remark.split())}" if host.remark else ""
    head = f"  {_scalar(host.name)}:{remark}\n"
    return head + "".join(f"    {key}: {_scalar(value)}\n" for key, value in stated.items())


def _scalar(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip()


def _without(examples: str, names: Sequence[str]) -> str:
    """Examples under a name that is already taken are renamed, so that uncommenting them stays valid."""
    for name in names:
        examples = re.sub(rf"^#  {re.escape(name)}:$", f"#  {name}-example:", examples, flags=re.MULTILINE)
    return examples
