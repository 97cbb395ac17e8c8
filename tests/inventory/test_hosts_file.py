"""hosts.yaml: what it may say, and how faults are told."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet_agent import configuration
from fleet_inventory import allowlists, document
from fleet_inventory.hosts import InventoryError, Limits, PortRange, Transport, load_inventory


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> list[str]:
    path = write(tmp_path, text)
    with pytest.raises(InventoryError) as raised:
        load_inventory(path)
    return str(raised.value).replace(f"{tmp_path}/", "").splitlines()


def test_a_host_needs_no_more_than_a_name(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, "hosts:\n  gpu1:\n  mac1: {}\n"))
    assert list(inventory.hosts) == ["gpu1", "mac1"]
    host = inventory.hosts["gpu1"]
    assert (host.name, host.address, host.transport) == ("gpu1", "gpu1", Transport.SSH)
    unset = host.model_dump(include={"user", "port", "jump", "model_dir", "python", "agent_root"})
    assert set(unset.values()) == {None}
    assert host.limits == Limits()


def test_the_hosts_settings_win_over_its_groups_and_those_over_the_defaults(tmp_path: Path) -> None:
    inventory = load_inventory(
        write(
            tmp_path,
            """
defaults:
  user: lab
  port: 22
  environment: {HF_ENDPOINT: https://mirror.example.org, HF_HUB_OFFLINE: 0}
  limits: {memory_reserve: 2 GB, max_services: 3}
groups:
  gpus:
    hosts: [gpu1]
    port: 2200
    environment: {HF_HUB_OFFLINE: 1}
    limits: {ports: 8100-8199}
hosts:
  gpu1:
    address: 192.0.2.7
    user: alice
    jump: "lab@gate:22, inner"
    groups: [big]
    labels: {room: 007}
    environment: {CUDA_VISIBLE_DEVICES: 0}
    limits: {max_services: 1}
    model_dir: /data/models/
    tools: {cmake: /opt/cmake}
""",
        )
    )
    host = inventory.hosts["gpu1"]
    assert (host.address, host.user, host.port, host.jump) == ("192.0.2.7", "alice", 2200, "lab@gate:22,inner")
    assert host.groups == ("gpus", "big")
    assert host.environment == {
        "HF_ENDPOINT": "https://mirror.example.org",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert host.labels == {"room": "007"}
    assert host.limits == Limits(
        memory_reserve_bytes=2_000_000_000, max_services=1, ports=PortRange(first=8100, last=8199)
    )
    assert (host.model_dir, host.tools) == ("/data/models", {"cmake": "/opt/cmake"})


def test_environment_values_stay_as_written(tmp_path: Path) -> None:
    text = "hosts: {a: {environment: {HF_HUB_OFFLINE: yes, OMP_NUM_THREADS: 08, VLLM_X: 1.50, MLX_Y: 0x10}}}"
    host = load_inventory(write(tmp_path, text)).hosts["a"]
    assert host.environment == {"HF_HUB_OFFLINE": "yes", "OMP_NUM_THREADS": "08", "VLLM_X": "1.50", "MLX_Y": "0x10"}


def test_a_group_may_be_a_mere_list_of_hosts(tmp_path: Path) -> None:
    inventory = load_inventory(write(tmp_path, "groups: {macs: [m1, m2], one: {hosts: m2}}\nhosts: {m1: , m2: , m3: }"))
    assert [host.groups for host in inventory.hosts.values()] == [("macs",), ("macs", "one"), ()]


def test_every_problem_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
defaults:
  port: "22"
  transport: shh
groups:
  macs: [mac1, mac9]
hosts:
  gpu1:
    prot: 22
    limits:
      memory_reserve: two
      max_services: 0
      ports: 90-80
  mac1:
    model_dir: models
    groups: {a: b}
    user: 1000
""",
    )
    assert found == [
        "hosts.yaml:2: defaults.port: must be a whole number, not '22'",
        "hosts.yaml:3: defaults.transport: must be one of ssh, tls, local, not 'shh'; did you mean 'ssh'?",
        "hosts.yaml:5: groups.macs[1]: no host 'mac9', did you mean 'mac1'?",
        "hosts.yaml:8: hosts.gpu1.prot: unknown key, did you mean 'port'?",
        "hosts.yaml:10: hosts.gpu1.limits.memory_reserve: must be a size like '2 GB' or '1.5 GiB', "
        "or a number of bytes, not 'two'",
        "hosts.yaml:11: hosts.gpu1.limits.max_services: input should be greater than or equal to 1, not 0",
        "hosts.yaml:12: hosts.gpu1.limits.ports: must lie within 1024-65535, the lower end first, not 90-80",
        "hosts.yaml:14: hosts.mac1.model_dir: must be an absolute path on the host (starting with '/'), not 'models'",
        "hosts.yaml:15: hosts.mac1.groups: must be a list like [a, b], not a mapping",
        "hosts.yaml:16: hosts.mac1.user: must be text, not 1000; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("address: lab@gpu1", "has a user in it; write 'user: lab' on a line of its own"),
        ("address: gpu1:2222", "has a port in it; write 'port: 2222' on a line of its own"),
        ("address: -oProxyCommand=x", "is no host name"),
        ("address: a b", "is no host name"),
        ("jump: -oProxyCommand=x", "must read [user@]host[:port]"),
        ("user: -l", "is no user name"),
        ("port: 0", "greater than or equal to 1"),
        ("port: yes", "must be a whole number, not yes/no"),
        ("model_dir: ~/models", "must be an absolute path"),
        ("environment: {HF_TOKEN: x}", "hub_token: env:HF_TOKEN"),
        ("environment: {LD_PRELOAD: /x.so}", "may not be set; allowed: HF_ENDPOINT, HF_HUB_OFFLINE"),
        ("environment: {hf_endpoint: x}", "did you mean 'HF_ENDPOINT'?"),
        ("environment: {HF_ENDPOINT: }", "must be text, not empty"),
        ("environment: [a]", "must hold 'key: value' lines, not a list"),
        ("memory_reserve: 2 GB", "unknown key; known here: user, port"),
        ("limits: {memory_reserve_bytes: 2}", "unknown key, did you mean 'memory_reserve'?"),
        ("limits: {ports: 8100}", "must be a range of ports like '8100-8199', not 8100"),
        ("tools: {bash: /bin/bash}", "the agent runs no such tool; it knows: git, cmake"),
        ("tools: {git: git}", "must be an absolute path"),
        ("groups: [all]", "'all' means every host"),
    ],
)
def test_a_bad_value_is_told_with_what_would_be_right(tmp_path: Path, entry: str, said: str) -> None:
    found = problems(tmp_path, f"hosts:\n  gpu1:\n    {entry}\n")
    assert len(found) == 1
    assert found[0].startswith("hosts.yaml:3: hosts.gpu1.")
    assert said in found[0]


@pytest.mark.parametrize("name", ["all", "-x", "a b", "gpu*", "a,b", "@a", "!a"])
def test_a_host_cannot_have_a_name_that_means_something_in_a_pattern(tmp_path: Path, name: str) -> None:
    (found,) = problems(tmp_path, f"hosts:\n  '{name}':\n")
    assert found.startswith(f"hosts.yaml:2: hosts.{name}: ")


def test_a_key_given_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    found = problems(tmp_path, "hosts:\n  a:\n    port: 1\n    port: 2\n  b:\n  a:\n")
    assert found == [
        "hosts.yaml:4: hosts.a.port: given twice, first on line 3; keep one",
        "hosts.yaml:6: hosts.a: given twice, first on line 2; keep one",
    ]


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "hosts:\n  a: &gpu {user: lab, port: 2200}\n  b: {<<: *gpu, port: 22}\n  c: {<<: *gpu}\n  d: *gpu\n"
    hosts = load_inventory(write(tmp_path, text)).hosts
    lab = ("lab", 2200)
    assert [(host.user, host.port) for host in hosts.values()] == [lab, ("lab", 22), lab, lab]


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("hosts:\n\tgpu1:\n", "2:1", "indent with spaces: YAML takes no tabs"),
        ("hosts:\n  gpu1:\n    user: a: b\n", "3:12", "needs quotes"),
        ("hosts:\n  gpu1:\n    port: 1\n   user: x\n", "4:4", "indented differently"),
        ("hosts: {gpu1: {groups: [a, b}\n", "1:29", "bracket is not closed"),
        ("hosts:\n  gpu1: &a {labels: *a}\n", "2:", "refers to itself"),
        ("hosts:\n---\nhosts:\n", "2:1", "one document"),
        ("hosts:\n  gpu1:\n    address: *gpu\n", "3:14", "YAML alias"),
        ("hosts:\n  gpu1:\n    address: @x\n", "3:14", "in quotes"),
        ("hosts:\n  ? [a, b]\n  : {}\n", "2:5", "a key must be plain text"),
    ],
)
def test_broken_yaml_is_told_with_line_column_and_a_hint(tmp_path: Path, text: str, line: str, hint: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"hosts.yaml:{line}")
    assert "cannot be read as YAML" in found
    assert hint in found


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just text\n", "hosts: [gpu1, gpu2]\n", "hosts: 5\n", "hosts: {a: 5}\n"]
)
def test_another_shape_is_told(tmp_path: Path, text: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith("hosts.yaml:1: ")
    assert "must hold 'key: value' lines, not " in found


def test_a_missing_or_empty_file_points_to_fleet_init(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"no such file; 'fleet init' writes one"):
        load_inventory(tmp_path / "hosts.yaml")
    assert "'fleet init" in problems(tmp_path, "# nothing yet\n")[0]


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="cannot be read: Is a directory"):
        load_inventory(tmp_path)
    (tmp_path / "hosts.yaml").write_bytes(b"hosts:\n  caf\xe9:\n")
    with pytest.raises(InventoryError, match="not UTF-8 text"):
        load_inventory(tmp_path / "hosts.yaml")


def test_the_agent_allows_what_the_file_allows() -> None:
    assert set(allowlists.EXACT) == configuration.ALLOWED_ENVIRONMENT
    assert allowlists.PREFIXES == configuration.ALLOWED_ENVIRONMENT_PREFIXES
    assert allowlists.TOOLS == configuration.ALLOWED_TOOLS


def test_the_fast_reader_and_the_slow_one_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {k: [1, two, 3.5], on: off}\nb: {<<: *x, on: 2026-01-02}\nc:\n- ~\n- {d: 'e'}\nc: twice\n"
    fast = document.parse_document(text, Path("f"), lambda path: False)
    monkeypatch.setattr(document, "_FAST_LOADER", yaml.SafeLoader)
    assert document.parse_document(text, Path("f"), lambda path: False) == fast
    assert fast.duplicates == ((("c",), 6, 3),)


def test_what_looks_like_a_date_and_is_none_is_text(tmp_path: Path) -> None:
    assert load_inventory(write(tmp_path, "hosts: {a: {user: 2026-13-01}}")).hosts["a"].user == "2026-13-01"


def test_endless_brackets_are_one_message(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "[" * 20_000)
    assert "nested too deeply" in found or "cannot be read as YAML" in found


def test_a_value_of_two_lines_is_one_message(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "'one\n\n  two\u2028three'")
    assert "one" in found
    assert len(found.splitlines()) == 1


LINES = st.sampled_from(
    ["defaults:", "groups:", "hosts:", "gpu1:", "port: 22", "port: x", "- a", "&a", "*a", "<<: *a", "{", "}", "[b]",
     "labels:", "environment: {HF_HOME: /x}", "limits: {ports: 1-2}", "# c", "\t", "'", "? k", ": v", "!!int x", "---"]
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["", "  ", "    ", "      "]), LINES), max_size=12))
def test_any_file_is_an_inventory_or_a_list_of_problems(lines: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts.yaml"
        path.write_text("\n".join(indent + line for indent, line in lines))
        try:
            load_inventory(path)
        except InventoryError as error:
            assert all(message.startswith(str(path)) for message in str(error).splitlines())
