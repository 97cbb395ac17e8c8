"""From what the hosts of a pull told about themselves to who heads the chain and who is a member of it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from fleet_controller.distributing.model import Member
from fleet_controller.distributing.ordering import representatives
from fleet_controller.domain.base import Frozen

WIFI_LABELS = (("network", "wifi"), ("link", "wifi"))
# A host that got so little in an earlier pull is slow, whatever its link says: in bytes a second.
SLOW_BYTES_PER_SECOND = 4e6


class Candidate(Frozen):
    """A host whose relay can take part. `name` is that of its certificate.

    reached: those of the others that it can dial, None before anybody asked. missing_bytes None = it did not tell.
    """

    name: str
    address: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    cache: str = ""
    link_bytes_per_second: float | None = None
    wifi: bool = False
    missing_bytes: int | None = None
    seen_bytes_per_second: float | None = None
    reached: Mapping[str, bool] | None = None


def prepared(candidate: Candidate, document: Mapping[str, Any]) -> Candidate:
    """With what its agent told before the relay began."""
    link = document.get("link_bytes_per_second")
    missing = document.get("missing_bytes")
    return candidate.model_copy(
        update={
            "cache": str(document.get("cache") or ""),
            "link_bytes_per_second": float(link) if link else None,
            "wifi": bool(document.get("wifi")),
            "missing_bytes": int(missing) if missing is not None else None,
        }
    )


def fetchers(candidates: Sequence[Candidate], head: str = "") -> dict[str, str]:
    """host -> the host that fetches for it: hosts that share a cache are one node."""
    return representatives([member_of(one, candidates) for one in candidates], head)


def choose_head(candidates: Sequence[Candidate]) -> str:
    """Who has all of it already; else who can be dialled and has the fastest link; else the one with most of it."""

    def rank(one: Candidate) -> tuple[bool, bool, float, int]:
        member = member_of(one, candidates)
        has_all = one.missing_bytes == 0
        link = one.link_bytes_per_second or one.seen_bytes_per_second or 0.0
        return not has_all, member.belongs_on_the_tail, -link, one.missing_bytes or 0

    return min(candidates, key=rank).name


def member_of(one: Candidate, all_of_them: Sequence[Candidate]) -> Member:
    """A measured rate below the link's own says more than the link does where it is very low."""
    wifi = one.wifi or any(one.labels.get(name, "").lower().replace("-", "") == value for name, value in WIFI_LABELS)
    slow = one.seen_bytes_per_second is not None and one.seen_bytes_per_second < SLOW_BYTES_PER_SECOND
    return Member(
        name=one.name,
        subnet=subnet_of(one.address),
        link_bytes_per_second=one.link_bytes_per_second or one.seen_bytes_per_second,
        wifi=wifi,
        dialable=is_dialable(one.name, all_of_them) and not cannot_dial(one, all_of_them),
        slow=slow,
        cache=one.cache,
    )


def is_dialable(name: str, all_of_them: Sequence[Candidate]) -> bool:
    """Whether at least half of those who tried reached it; nobody tried: taken for granted."""
    tries = [one.reached[name] for one in all_of_them if one.reached and name in one.reached]
    return not tries or sum(tries) * 2 >= len(tries)


def cannot_dial(one: Candidate, all_of_them: Sequence[Candidate]) -> bool:
    """Whether it reaches none of those that others reach: it can only be fed."""
    if not one.reached:
        return False
    open_to_others = [name for name in one.reached if _reached_by_another(name, one.name, all_of_them)]
    return bool(open_to_others) and not any(one.reached[name] for name in open_to_others)


def _reached_by_another(name: str, asker: str, all_of_them: Sequence[Candidate]) -> bool:
    others = [one for one in all_of_them if one.name not in (name, asker) and one.reached]
    return not others or any(one.reached.get(name, False) for one in others if one.reached)


def subnet_of(address: str) -> str:
    """As "10.1.2.0/24"; the domain of a name; "" where it tells nothing."""
    try:
        return str(ipaddress.ip_network(f"{address}/24" if ":" not in address else f"{address}/64", strict=False))
    except ValueError:
        return address.partition(".")[2]
