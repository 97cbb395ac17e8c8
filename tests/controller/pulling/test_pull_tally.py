"""How many bytes came from where, over all the processes that a relay may need."""

from fleet_controller.distributing import messages
from fleet_controller.pulling.tally import FleetTally, HostTally

LISTENING = messages.Listening(node="n", address="0.0.0.0", port=1, pid=1)


def progress(**figures: int) -> messages.Progress:
    return messages.Progress.model_validate({"verified_bytes": 0, "total_bytes": 100, **figures})


def test_a_relay_that_was_started_again_counts_from_zero() -> None:
    tally = HostTally()
    for event in (LISTENING, progress(received_bytes=40, verified_bytes=38), LISTENING, progress(received_bytes=62)):
        tally.hear(event)
    assert tally.moved("received_bytes") == 102
    assert tally.verified_bytes == 0  # what its successor has found so far


def test_the_last_bytes_may_come_after_the_last_progress() -> None:
    tally = HostTally()
    for event in (LISTENING, progress(received_bytes=90), messages.Complete(snapshot="/s", fetched_bytes=100)):
        tally.hear(event)
    assert (tally.moved("received_bytes"), tally.verified_bytes) == (100, 100)


def test_what_a_lost_host_brought_into_the_cache_counts_for_its_heir() -> None:
    lost, heir = HostTally(), HostTally()
    for event in (LISTENING, progress(received_bytes=40, source_bytes=2)):
        lost.hear(event)
    heir.inherit(lost)
    for event in (LISTENING, progress(received_bytes=60)):
        heir.hear(event)
    assert (heir.moved("received_bytes"), heir.moved("source_bytes")) == (100, 2)


def test_the_internet_is_told_from_the_lab() -> None:
    head, other = HostTally(), HostTally()
    for tally, event in (
        (head, progress(source_bytes=100, verified_bytes=100)),
        (other, progress(received_bytes=50, verified_bytes=50)),
    ):
        tally.hear(LISTENING)
        tally.hear(event)
    fleet = FleetTally.of([head, other], 100)
    assert (fleet.source_bytes, fleet.lab_bytes, fleet.verified_bytes, fleet.total_bytes) == (100, 50, 150, 200)
    assert fleet.in_words("from the internet").endswith("in the lab")
