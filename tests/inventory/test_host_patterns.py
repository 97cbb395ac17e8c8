"""Patterns: which hosts a user means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_inventory.hosts import Host
from fleet_inventory.patterns import PatternError, select

HOSTS = (
    Host(name="gpu1", address="gpu1", groups=("gpus", "b12"), labels={"room": "b12", "owner": "alice"}),
    Host(name="gpu2", address="gpu2", groups=("gpus",), labels={"room": "b13"}),
    Host(name="gpu10", address="gpu10", groups=("gpus",)),
    Host(name="mac1", address="mac1", groups=("macs",), labels={"room": "b12"}),
    Host(name="h200", address="h200"),
)


def names(pattern: str) -> list[str]:
    return [host.name for host in select(pattern, HOSTS)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("gpu1", ["gpu1"]),
        ("gpu*", ["gpu1", "gpu2", "gpu10"]),
        ("gpu?", ["gpu1", "gpu2"]),
        ("gpu[12]", ["gpu1", "gpu2"]),
        ("all", ["gpu1", "gpu2", "gpu10", "mac1", "h200"]),
        ("*", ["gpu1", "gpu2", "gpu10", "mac1", "h200"]),
        ("@gpus", ["gpu1", "gpu2", "gpu10"]),
        ("@*s", ["gpu1", "gpu2", "gpu10", "mac1"]),
        ("mac1,gpu1", ["gpu1", "mac1"]),
        (" mac1 , gpu1 ,", ["gpu1", "mac1"]),
        ("gpu1,gpu*,@gpus", ["gpu1", "gpu2", "gpu10"]),
        ("@gpus,!gpu2", ["gpu1", "gpu10"]),
        ("!gpu2,@gpus", ["gpu1", "gpu10"]),
        ("!@gpus", ["mac1", "h200"]),
        ("!gpu*,!mac1", ["h200"]),
        ("all,!@macs,!h200", ["gpu1", "gpu2", "gpu10"]),
        ("room=b12", ["gpu1", "mac1"]),
        ("room=*", ["gpu1", "gpu2", "mac1"]),
        ("@gpus,!room=b13", ["gpu1", "gpu10"]),
    ],
)
def test_a_pattern_means_hosts_in_the_order_of_the_file(pattern: str, expected: list[str]) -> None:
    assert names(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("gpu3", "no host matches 'gpu3', did you mean gpu"),
        ("gpu1,gp2", "no host matches 'gp2', did you mean gpu2"),
        ("GPU1", "did you mean gpu1?"),
        ("tpu*", "groups: @gpus, @b12, @macs"),
        ("qqqq", "hosts: gpu1, gpu2, gpu10, mac1, h200; groups: @gpus, @b12, @macs"),
        ("gpus", "did you mean gpu"),
        ("@gpu", "no group '@gpu', did you mean @gpus?; groups: @gpus, @b12, @macs"),
        ("@nothing", "no group '@nothing'; groups: @gpus, @b12, @macs"),
        ("all,!gpu3x", "no host matches 'gpu3x', did you mean"),
        ("!@mac", "no group '@mac', did you mean @macs?"),
        ("room=b14", "no host has the label 'room=b14', did you mean room=b1"),
        ("gpu1,!gpu*", "'gpu1,!gpu*' leaves no host"),
        ("", "'all' means every host"),
        (" , ", "'all' means every host"),
    ],
)
def test_a_pattern_that_means_no_host_is_told_with_near_names(pattern: str, said: str) -> None:
    with pytest.raises(PatternError) as raised:
        select(pattern, HOSTS)
    assert said in str(raised.value)


def test_an_empty_inventory_is_told_apart_from_a_wrong_name() -> None:
    with pytest.raises(PatternError, match=r"hosts\.yaml has none yet"):
        select("all", ())


@given(st.text(alphabet="gpu12*?@!,[]= macs", max_size=20))
def test_any_text_gives_hosts_of_the_file_each_once_or_one_message(pattern: str) -> None:
    try:
        chosen = names(pattern)
    except PatternError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert chosen == [host.name for host in HOSTS if host.name in chosen]
        assert chosen
