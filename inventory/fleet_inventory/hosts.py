"""The hosts of a fleet, as hosts.yaml gives them."""

from pathlib import Path
from typing import Any, cast

from pydantic import Field

from fleet_inventory.base import Frozen, InventoryError
from fleet_inventory.document import Document, KeyPath, read_document
from fleet_inventory.host_file import (
    GroupSettings,
    HostSettings,
    HostsFile,
    LimitsSettings,
    PortRange,
    Settings,
    Transport,
)
from fleet_inventory.problems import did_you_mean, line_message, listing, validate

__all__ = ["Host", "Inventory", "InventoryError", "Limits", "PortRange", "Transport", "load_inventory"]


TLS_PORT = 7443  # of the agent, for transport tls


class Limits(Frozen):
    """What services on a host may take. None: the planner's own default."""

    memory_reserve_bytes: int | None = None
    max_services: int | None = None
    ports: PortRange | None = None


class Host(Frozen):
    """One host, with the defaults and its groups' settings applied. `groups` are in the order of the file."""

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    jump: str | None = None
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    transport: Transport = Transport.SSH
    tls_port: int = TLS_PORT
    environment: dict[str, str] = Field(default_factory=dict)
    model_dir: str | None = None
    limits: Limits = Limits()
    agent_root: str | None = None
    python: str | None = None
    hub_token: str | None = None
    tools: dict[str, str] = Field(default_factory=dict)


class Inventory(Frozen):
    """All hosts by name, in the order of the file."""

    path: Path
    hosts: dict[str, Host] = Field(default_factory=dict)


def load_inventory(path: Path) -> Inventory:
    """Read hosts.yaml. Raises InventoryError, whose text lists every problem with file, line and key."""
    if not path.exists():
        raise InventoryError(f"{path}: there is no such file; 'fleet init' writes one to start from")
    document = read_document(path, _verbatim)
    if document.data is None:
        raise InventoryError(f"{path}: the file is empty; 'fleet init --force' writes one to start from")
    value, problems = validate(HostsFile, document)
    problems += _dangling(document)
    if problems or value is None:
        raise InventoryError(listing(problems))
    return Inventory(path=path, hosts=_resolve(cast(HostsFile, value)))


def _verbatim(path: KeyPath) -> bool:
    return len(path) > 1 and path[-2] in ("environment", "labels")


def _dangling(document: Document) -> list[tuple[int, str]]:
    """Members of groups that are no hosts. It looks at the raw data, to find them in a file with other faults, too."""
    hosts, groups = _section(document, "hosts"), _section(document, "groups")
    problems = []
    for name, group in groups.items():
        members = group.get("hosts") if isinstance(group, dict) else group
        listed = members.split(",") if isinstance(members, str) else members if isinstance(members, list) else ()
        for index, member in enumerate(listed):
            if isinstance(member, str) and member.strip() not in hosts:
                path: KeyPath = ("groups", name, "hosts", index) if isinstance(group, dict) else ("groups", name, index)
                problems.append(line_message(document, path, f"no host '{member}'" + did_you_mean(member, hosts)))
    return problems


def _section(document: Document, key: str) -> dict[str, Any]:
    section = document.data.get(key) if isinstance(document.data, dict) else None
    return section if isinstance(section, dict) else {}


def _resolve(file: HostsFile) -> dict[str, Host]:
    declared = {name: group or GroupSettings() for name, group in (file.groups or {}).items()}
    hosts = {}
    for name, entry in (file.hosts or {}).items():
        own = entry or HostSettings()
        member_of = [group for group, settings in declared.items() if name in (settings.hosts or ())]
        named = dict.fromkeys((*declared, *(own.groups or ())))  # declared groups first, in their order
        groups = tuple(group for group in named if group in member_of or group in (own.groups or ()))
        layers = [file.defaults or Settings(), *(declared[group] for group in groups if group in declared), own]
        hosts[name] = _host(name, own.address or name, groups, layers)
    return hosts


def _host(name: str, address: str, groups: tuple[str, ...], layers: list[Settings]) -> Host:
    """Later layers win; mappings are merged key by key, so that a host adds to what its group says."""
    values: dict[str, object] = {}
    merged: dict[str, dict[str, str]] = {"labels": {}, "environment": {}, "tools": {}}
    limits: dict[str, object] = {}
    for layer in layers:
        for key in ("user", "port", "jump", "transport", "tls_port", "model_dir", "agent_root", "python", "hub_token"):
            if getattr(layer, key) is not None:
                values[key] = getattr(layer, key)
        for key, mapping in merged.items():
            mapping.update(getattr(layer, key) or {})
        limits.update(_stated(layer.limits))
    if "memory_reserve" in limits:
        limits["memory_reserve_bytes"] = limits.pop("memory_reserve")
    host_limits = Limits.model_validate(limits)
    return Host.model_validate(
        {"name": name, "address": address, "groups": groups, "limits": host_limits} | values | merged
    )


def _stated(limits: LimitsSettings | None) -> dict[str, object]:
    return {key: value for key, value in (limits or LimitsSettings()) if value is not None}
