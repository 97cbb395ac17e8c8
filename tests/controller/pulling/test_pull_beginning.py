"""Who heads a chain, who may stand in it, who fetches for whom: from what hosts tell of themselves."""

from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.distributing.ordering import order_members
from fleet_controller.operations.pull_node import labels_of
from fleet_controller.pulling.beginning import (
    Candidate,
    cannot_dial,
    choose_head,
    fetchers,
    is_dialable,
    member_of,
    prepared,
    subnet_of,
    worth_remembering,
)


def host(name: str, **known: object) -> Candidate:
    return Candidate.model_validate({"name": name, "address": "10.0.0.1", "missing_bytes": 100, **known})


def test_who_has_all_of_it_heads_the_chain_however_slow() -> None:
    hosts = [host("fast", link_bytes_per_second=1e9), host("has", missing_bytes=0, link_bytes_per_second=1e6)]
    assert choose_head(hosts) == "has"


def test_the_fastest_link_heads_the_chain_but_never_wifi() -> None:
    hosts = [
        host("air", wifi=True, link_bytes_per_second=9e9),
        host("slow", link_bytes_per_second=1e8),
        host("fast", link_bytes_per_second=1e9),
    ]
    assert choose_head(hosts) == "fast"


def test_among_equals_the_one_that_lacks_least() -> None:
    assert choose_head([host("a", missing_bytes=50), host("b", missing_bytes=10)]) == "b"


def test_who_has_most_of_it_already_heads_the_chain_rather_than_the_fastest() -> None:
    """After a pull that was cut off, or a download of one host alone: the hub need not send that once more."""
    hosts = [
        host("fast", link_bytes_per_second=1.25e9, missing_bytes=1000),
        host("has", link_bytes_per_second=1.25e8, missing_bytes=200),
        host("air", wifi=True, missing_bytes=100),
    ]
    assert choose_head(hosts) == "has"
    alike = [hosts[0].model_copy(update={"missing_bytes": 209}), hosts[1].model_copy(update={"missing_bytes": 200})]
    assert choose_head([*alike, host("new", missing_bytes=1000)]) == "fast"
    assert choose_head([hosts[0], hosts[1].model_copy(update={"missing_bytes": None})]) == "fast"


def test_rates_say_nothing_of_hosts_where_a_limit_or_the_source_held_them_up() -> None:
    rates = {"a": 60e6, "b": 1e6, "c": 0.0}
    assert worth_remembering(rates, limited=False) == {"a": 60e6, "b": 1e6}
    assert worth_remembering(rates, limited=True) == {}
    assert worth_remembering({"a": 3e6, "b": 2.9e6}, limited=False) == {}
    assert worth_remembering({}, limited=False) == {}


def test_what_a_host_tells_is_taken_over() -> None:
    told = {"cache": "x", "link_bytes_per_second": 125_000_000, "wifi": True, "missing_bytes": 7}
    found = prepared(host("a"), told)
    assert (found.cache, found.link_bytes_per_second, found.wifi, found.missing_bytes) == ("x", 1.25e8, True, 7)
    assert prepared(host("a"), {}).link_bytes_per_second is None


def test_hosts_of_one_cache_are_one_node_and_the_head_fetches_for_its_own() -> None:
    hosts = [host("a", cache="x"), host("b", cache="x"), host("c", cache="y")]
    assert fetchers(hosts, "b") == {"a": "b", "b": "b", "c": "c"}


def test_labels_and_earlier_pulls_send_a_host_to_the_tail() -> None:
    hosts = [
        host("head"),
        host("labelled", labels={"network": "Wi-Fi"}),
        host("crawled", seen_bytes_per_second=1e6),
        host("plain"),
    ]
    topology = order_members([member_of(one, hosts) for one in hosts], "head")
    assert topology.chain == ("plain",)
    assert set(topology.leaves) == {"labelled", "crawled"}


def test_who_is_not_reached_serves_nobody_and_who_reaches_nobody_is_fed() -> None:
    hosts = [
        host("a", reached={"b": True, "hidden": False, "island": False}),
        host("b", reached={"a": True, "hidden": False, "island": False}),
        host("hidden", reached={"a": True, "b": True, "island": False}),  # behind a NAT: it dials out
        host("island", reached={"a": False, "b": False, "hidden": False}),
    ]
    assert [one.name for one in hosts if not is_dialable(one.name, hosts)] == ["hidden", "island"]
    assert [one.name for one in hosts if cannot_dial(one, hosts)] == ["island"]


def test_two_hosts_of_which_one_reaches_the_other() -> None:
    hosts = [host("a", reached={"b": False}), host("b", reached={"a": True})]
    assert [is_dialable(one.name, hosts) for one in hosts] == [True, False]
    assert not cannot_dial(hosts[1], hosts)


def test_nobody_asked_means_everybody_is_reached() -> None:
    hosts = [host("a"), host("b")]
    assert all(is_dialable(one.name, hosts) for one in hosts)
    assert not any(cannot_dial(one, hosts) for one in hosts)


def test_networks_of_addresses_and_of_names() -> None:
    assert subnet_of("10.1.2.3") == subnet_of("10.1.2.200") == "10.1.2.0/24"
    assert subnet_of("10.1.3.3") != subnet_of("10.1.2.3")
    assert subnet_of("gpu1.lab.example") == "lab.example"
    assert subnet_of("2001:db8::1") == "2001:db8::/64"


@given(st.lists(st.text("aB1._-", min_size=1, max_size=60).filter(lambda name: name[0] in "aB1"), unique=True))
def test_each_host_has_a_label_of_its_own_that_is_one_in_dns(hosts: list[str]) -> None:
    labels = labels_of(hosts)
    assert len(set(labels.values())) == len(hosts)
    for label in labels.values():
        assert 0 < len(label) <= 63
        assert label.strip("-") == label
        assert all(character in "abcdefghijklmnopqrstuvwxyz0123456789-" for character in label)
