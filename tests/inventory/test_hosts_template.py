"""`fleet init`: the file it writes, and the hosts it takes from ssh_config."""

import json
import re
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from fleet_inventory.base import InventoryError
from fleet_inventory.hosts import Inventory, Transport, load_inventory
from fleet_inventory.schema import hosts_schema, main, schema_text
from fleet_inventory.ssh_config import SshConfigHost, hosts_from_ssh_config
from fleet_inventory.template import TemplateHost, render_hosts_yaml, template_hosts

ROOT = Path(__file__).parents[2]
FOUND = [SshConfigHost(alias="gpu1", host_name="192.0.2.1", user="lab"), SshConfigHost(alias="odd+alias")]


def load(tmp_path: Path, text: str) -> Inventory:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    return load_inventory(path)


def uncommented(text: str) -> str:
    return re.sub(r"^#(?!#)", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("hosts", [[], template_hosts(FOUND)], ids=["no-hosts", "two-hosts"])
def test_the_template_is_valid_as_it_stands_and_with_every_example_uncommented(
    tmp_path: Path, hosts: list[TemplateHost]
) -> None:
    text = render_hosts_yaml(hosts)
    assert list(load(tmp_path, text).hosts) == [host.name for host in hosts]
    full = load(tmp_path, uncommented(text))
    assert {"gpu2", "mac1", "here"} < set(full.hosts)
    assert full.hosts["here"].transport == Transport.LOCAL
    assert full.hosts["gpu2"].environment["CUDA_VISIBLE_DEVICES"] == "0"
    for candidate in (text, uncommented(text)):
        jsonschema.validate(yaml.safe_load(candidate), hosts_schema())


def test_every_key_of_the_file_has_an_example(tmp_path: Path) -> None:
    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return {str(key) for key in value} | {key for inner in value.values() for key in keys(inner)}
        return set()

    definitions = hosts_schema()["$defs"]
    assert isinstance(definitions, dict)
    named = {key for name in ("HostSettings", "LimitsSettings") for key in definitions[name]["properties"]}
    assert named <= keys(yaml.safe_load(uncommented(render_hosts_yaml())))


def test_hosts_taken_over_keep_their_alias_as_address(tmp_path: Path) -> None:
    hosts = load(tmp_path, render_hosts_yaml(template_hosts(FOUND))).hosts
    assert [(host.name, host.address, host.user) for host in hosts.values()] == [
        ("gpu1", "gpu1", None),
        ("odd-alias", "odd+alias", None),
    ]


def test_awkward_aliases_get_free_valid_names_and_impossible_ones_are_left_out() -> None:
    found = [SshConfigHost(alias=alias) for alias in ("all", "a+b", "a-b", "_x", 'q"uote', "a/b")]
    assert [(host.name, host.address) for host in template_hosts(found)] == [
        ("all-hosts", "all"),
        ("a-b", "a+b"),
        ("a-b-2", "a-b"),
        ("x", "_x"),
    ]


def test_a_remark_cannot_break_the_file(tmp_path: Path) -> None:
    text = render_hosts_yaml([TemplateHost(name="yes", address="on", groups=("no",), remark="two\nlines: x")])
    host = load(tmp_path, text).hosts["yes"]
    assert (host.address, host.groups) == ("on", ("no",))
    with pytest.raises(ValueError, match="same name"):
        render_hosts_yaml([TemplateHost(name="a"), TemplateHost(name="a")])


def test_the_committed_schema_is_current(tmp_path: Path) -> None:
    committed = (ROOT / "docs" / "hosts.schema.json").read_text()
    assert committed == schema_text(), "run `python -m fleet_inventory.schema` in the root of the repository"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))
    assert main([str(tmp_path / "x.json")]) == 0
    assert (tmp_path / "x.json").read_text() == committed
    assert main([str(tmp_path / "missing" / "x.json")]) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"hosts": {"gpu1": {"prot": 22}}},
        {"hosts": {"gpu1": {"port": "22"}}},
        {"hosts": {"gpu1": {"port": 70000}}},
        {"hosts": {"gpu1": {"transport": "telnet"}}},
        {"hosts": {"gpu1": {"environment": {"LD_PRELOAD": "x"}}}},
        {"hosts": {"gpu1": {"model_dir": "models"}}},
        {"hosts": {"bad name": {}}},
        {"hosts": {"all": {}}},
        {"hosts": ["gpu1"]},
        {"host": {}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, hosts_schema())
    with pytest.raises(InventoryError):
        load(tmp_path, yaml.safe_dump(bad))


def test_concrete_aliases_are_found_in_ssh_config_and_its_includes(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-lab").write_text("Host mac1\n  HostName 192.0.2.20\nHost lab-*\n  User lab\n")
    (tmp_path / "work").write_text("Host work-a home-b\n  User w\n")
    config = tmp_path / "config"
    config.write_text(
        """
# a comment
Include conf.d/*
Host gpu1 gpu2 *.example.org !gpu9   # several
    HostName=%h.lab.example.org
    User "lab user"
    ProxyJump gate
Match user root
    HostName ignored
Host work-*
    Include work
host gpu1
    User other
Host *
    User everyone
"""
    )
    assert hosts_from_ssh_config(config) == [
        SshConfigHost(alias="mac1", host_name="192.0.2.20", user="everyone"),
        SshConfigHost(alias="gpu1", host_name="gpu1.lab.example.org", user="lab user"),
        SshConfigHost(alias="gpu2", host_name="gpu2.lab.example.org", user="lab user"),
        SshConfigHost(alias="work-a", user="w"),
    ]


def test_a_missing_ssh_config_is_no_hosts_and_a_broken_one_one_message(tmp_path: Path) -> None:
    assert hosts_from_ssh_config(tmp_path / "config") == []
    (tmp_path / "config").write_text('Host a\nUser "open\n')
    with pytest.raises(InventoryError, match=r"config:2: no closing quotation; close the quote"):
        hosts_from_ssh_config(tmp_path / "config")
    (tmp_path / "loop").write_text("Include loop\nHost a\n")
    assert [host.alias for host in hosts_from_ssh_config(tmp_path / "loop")] == ["a"]
