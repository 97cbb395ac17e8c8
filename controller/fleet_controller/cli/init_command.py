"""What `fleet init` does."""

import os

from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import print_json
from fleet_inventory.base import InventoryError
from fleet_inventory.paths import hosts_file, ssh_config_file
from fleet_inventory.ssh_config import hosts_from_ssh_config
from fleet_inventory.template import TemplateHost, render_hosts_yaml, template_hosts


def run_init(from_ssh_config: bool, force: bool, as_json: bool) -> None:
    """Write hosts.yaml. Raises UsageFailure where one is there and `force` is not given."""
    path = hosts_file()
    hosts = _ssh_config_hosts() if from_ssh_config else []
    text = render_hosts_yaml(hosts)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.write_text(text, encoding="utf-8")
    try:
        if force:
            beside.replace(path)
        else:
            os.link(beside, path)  # unlike a look before a write, this cannot overwrite what appears in between
    except FileExistsError:
        raise UsageFailure(f"{path} is there already", "edit it, or overwrite it with: fleet init --force") from None
    finally:
        beside.unlink(missing_ok=True)
    if as_json:
        print_json({"path": str(path), "hosts": [host.name for host in hosts]})
        return
    print(f"wrote {path} with {len(hosts)} host{'' if len(hosts) == 1 else 's'}")
    if hosts:
        print("next: look through it, then: fleet up all")
    else:
        print("next: add your hosts to it, then: fleet up all")


def _ssh_config_hosts() -> list[TemplateHost]:
    path = ssh_config_file()
    try:
        found = template_hosts(hosts_from_ssh_config(path))
    except InventoryError as error:
        raise UsageFailure(str(error)) from None
    if not found:
        raise UsageFailure(f"{path} names no hosts", "fleet init writes a file to fill in by hand")
    return found
