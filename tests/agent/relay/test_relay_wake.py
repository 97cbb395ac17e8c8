"""News for a serving thread: none is lost, whatever it was doing, and none is told while it is at work."""

import contextlib
import select

from fleet_agent.relay.serving import Wake


def told(wake: Wake) -> bool:
    """Takes the news, as ServerLink.wait does."""
    readable, _, _ = select.select([wake.reader], [], [], 0.0)
    return bool(readable) and bool(wake.reader.recv(64))


def test_only_who_waits_is_told_and_once() -> None:
    with contextlib.closing(Wake()) as wake:
        wake()
        assert not told(wake)
        wake.arm()
        wake()
        wake()
        assert told(wake) and not told(wake)


def test_what_comes_while_news_is_taken_is_told_the_next_time() -> None:
    """Between the news and the look at how things stand: once a mark of its own stayed behind then, without a byte."""
    with contextlib.closing(Wake()) as wake:
        wake.arm()
        wake()
        wake.arm()  # the thread looks again before it has taken the first
        wake()
        assert told(wake)
        wake.arm()
        wake()
        assert told(wake)
