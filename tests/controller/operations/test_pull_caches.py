"""Hosts that share a cache: one fetches, another one where that one is lost; and when certificates are made anew."""

import time
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState
from fleet_controller.distributing.messages import Listening
from fleet_controller.distributing.model import Member
from fleet_controller.domain.base import Problem
from fleet_controller.domain.pulls import PlannedPull, PulledFiles, PullSource
from fleet_controller.operations import pull_caches
from fleet_controller.operations.pull_caches import PullCaches, fetchers_again
from fleet_controller.operations.pull_ending import PullEnding
from fleet_controller.operations.pull_feeds import PullFeeds
from fleet_controller.operations.pull_node import PullNode
from fleet_controller.operations.pull_opening import PullOpening
from fleet_controller.operations.pull_sources import PullSources
from fleet_controller.operations.pull_telling import PullTelling
from fleet_controller.pki.keeper import IdentityKeeper
from fleet_controller.pulling.beginning import Candidate
from fleet_inventory.hosts import Host

PULL = PlannedPull(
    pull_id="abc", digest="d", files=PulledFiles(repository="o/m", commit="0" * 40), source=PullSource(endpoints=("",))
)
DEAD = Problem(code="relay-died", message="its relay died")
AWAY = Problem(code="host-unreachable", message="no answer")


class StandInLink:
    """Notes what a host would be told."""

    token_file = ""

    def __init__(self, name: str) -> None:
        self.host, self.name, self.beginning = Host(name=name, address=name), name, 0
        self.orders: list[str] = []
        self.credentials: list[Any] = []

    def order(self, document: str, credentials: Any = None) -> None:
        if credentials is None:
            self.orders.append(document)
        else:
            self.credentials.append(credentials)

    def start_again(self) -> None:
        self.beginning += 1


class World:
    """a and b share a cache, c has its own; a and c fetch."""

    def __init__(self, tmp_path: Path) -> None:
        caches = {"a": "x", "b": "x", "c": "y"}
        self.nodes = {
            name: PullNode(StandInLink(name), Candidate(name=name, cache=cache), fetcher=name)  # type: ignore[arg-type]
            for name, cache in caches.items()
        }
        for name in ("a", "c"):
            self.listens(name)
        self.nodes["b"].fetcher, self.nodes["b"].ended = "a", True
        self.telling = PullTelling(PULL, self.nodes)
        self.caches = PullCaches(self.nodes, self.telling)
        feeds = PullFeeds(PULL, lambda name, message: None)
        self.sources = PullSources(PULL, self.nodes, feeds)
        self.ending = PullEnding(self.nodes, self.caches, self.sources, self.telling)
        self.opening = PullOpening(PULL, self.nodes, IdentityKeeper(tmp_path), self.telling)

    def listens(self, name: str) -> Listening:
        node = self.nodes[name]
        node.prepared = node.caught_up = node.has_credentials = True
        node.certified_at = time.time()
        node.listening = Listening(node=name, address="10.0.0.1", port=1, pid=1)
        return node.listening

    def conductor(self, *names: str) -> Conductor:
        members = tuple(Member(name=name, cache=node.candidate.cache) for name, node in self.nodes.items())
        sources = self.sources.by_host(names[0])
        conductor = Conductor(ConductorState(members=members, head=names[0], sources=sources))
        for name in names:
            conductor.observe(name, self.listens(name), 0.0)
        conductor.begin()
        return conductor

    def orders(self, name: str) -> list[str]:
        return self.nodes[name].link.orders  # type: ignore[attr-defined, no-any-return]

    def told(self) -> dict[str, str]:
        """host -> its last word."""
        return {
            event.host: event.problem.code if event.problem else event.message
            for event in self.telling.drained()
            if event.done
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_another_host_of_the_cache_goes_on_for_one_whose_job_failed(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    assert world.caches.hand_over() == []
    a.problem, a.ended = DEAD, True
    assert world.caches.heir(a) is b
    assert world.caches.hand_over() == [a]
    assert (a.fetcher, b.fetcher, b.link.beginning, b.open) == ("b", "b", 1, True)
    assert world.caches.hand_over() == []
    b.complete, b.snapshot = True, "/s"
    world.telling.of(b, b.completion)
    told = world.told()
    assert set(told) == {"a", "b"}
    assert "the cache that it shares with b" in told["a"]


def test_each_host_is_tried_once_and_then_all_of_them_have_failed(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    a.problem, a.ended = DEAD, True
    world.caches.hand_over()
    b.problem, b.ended = DEAD, True
    assert world.caches.heir(b) is None
    assert world.caches.hand_over() == []
    world.caches.failed(b)
    assert world.told() == {"a": "relay-died", "b": "relay-died"}


def test_one_that_is_away_is_lost_after_a_while_unless_somebody_serves_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, c = world.nodes["a"], world.nodes["c"]
    a.away, a.away_since = AWAY, time.monotonic()
    assert not world.caches.is_lost(a)
    a.away_since -= pull_caches.LOST_SECONDS + 1
    c.serves, c.heard_at = ("a",), time.monotonic()
    assert not world.caches.is_lost(a)  # it is only we who do not reach it
    c.heard_at -= pull_caches.SERVING_SECONDS + 1
    assert world.caches.is_lost(a)


def test_a_host_that_comes_late_and_shares_a_cache_has_nothing_to_do(world: World) -> None:
    late = world.nodes["d"] = PullNode(StandInLink("d"), Candidate(name="d", cache="y"), fetcher="d")  # type: ignore[arg-type]
    assert world.caches.join(late)
    assert late.fetcher == "c"
    assert ['"stop"' in order for order in world.orders("d")] == [True]
    other = PullNode(StandInLink("e"), Candidate(name="e", cache=""), fetcher="e")  # type: ignore[arg-type]
    assert not world.caches.join(other)
    assert other.fetches


def test_a_chain_of_which_nobody_is_left_begins_again_with_the_heir(world: World) -> None:
    """All hosts of the pull share one cache, and the only one that fetched dies."""
    del world.nodes["c"]
    conductor = world.conductor("a")
    a, b = world.nodes["a"], world.nodes["b"]
    a.problem, a.ended = DEAD, True
    (lost,) = world.caches.hand_over()
    conductor.observe("a", messages.Failed(code="x", message="handed over"), 1.0)
    assert conductor.state.topology is None
    assert world.ending.judge(conductor) == ()
    assert world.told() == {}  # b is on its way
    conductor.observe("b", world.listens("b"), 2.0)
    ((name, order),) = world.ending.judge(conductor)
    assert (lost.name, name) == ("a", "b")
    assert isinstance(order, messages.Route)
    assert order.hub is not None
    assert conductor.state.topology is not None
    assert conductor.state.topology.names == ("b",)
    conductor.observe("b", messages.Failed(code="x", message="gone, too"), 3.0)
    b.problem, b.ended = DEAD, True
    world.ending.judge(conductor)
    assert set(world.told()) == {"a", "b"}


def test_hosts_that_are_lost_are_not_waited_for_forever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_controller.operations.pull_ending.CATCH_UP_SECONDS", -1.0)
    conductor = world.conductor("a", "c")
    a, c = world.nodes["a"], world.nodes["c"]
    conductor.observe("a", messages.Complete(snapshot="/s", fetched_bytes=1), 1.0)
    a.complete, a.snapshot = True, "/s"
    world.telling.of(a, a.completion)
    world.told()
    world.ending.judge(conductor)
    assert world.told() == {}
    c.away, c.away_since = AWAY, time.monotonic() - pull_caches.LOST_SECONDS - 1
    world.ending.judge(conductor)
    assert world.told() == {"c": "host-unreachable"}


def test_nobody_is_given_up_where_none_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is this machine that is cut off."""
    monkeypatch.setattr("fleet_controller.operations.pull_ending.CATCH_UP_SECONDS", -1.0)
    conductor = world.conductor("a", "c")
    for name in ("a", "c"):
        world.nodes[name].away, world.nodes[name].away_since = AWAY, time.monotonic() - 1000
    world.ending.judge(conductor)
    assert world.told() == {}


def test_who_fetches_is_known_from_what_another_controller_decided() -> None:
    members = tuple(
        Member(name=name, cache=cache) for name, cache in (("a", "x"), ("b", "x"), ("c", ""), ("d", "x"), ("e", ""))
    )
    assert fetchers_again(members, ("a", "c"), frozenset()) == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e"}
    assert fetchers_again(members, ("b", "c"), frozenset({"a"}))["a"] == "b"
    assert fetchers_again(members, (), frozenset({"a"}))["d"] == "b"


def test_a_certificate_that_is_half_spent_is_followed_by_another(world: World) -> None:
    a, b, c = (world.nodes[name] for name in "abc")
    world.opening.renew_credentials()
    assert a.link.credentials == []  # type: ignore[attr-defined]
    a.certified_at -= 13 * 3600.0
    c.certified_at = 0.0  # another controller gave it
    world.opening.renew_credentials()
    world.opening.renew_credentials()
    assert [len(node.link.credentials) for node in (a, b, c)] == [1, 0, 1]  # type: ignore[attr-defined]
    authority, certificate, key = a.link.credentials[0]  # type: ignore[attr-defined]
    assert b"CERTIFICATE" in authority
    assert b"CERTIFICATE" in certificate
    assert b"PRIVATE KEY" in key
