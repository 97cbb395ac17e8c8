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
# Where even the fastest host of a pull got less than that, it was the source that was slow.
TELLING_BYTES_PER_SECOND = 2 * SLOW_BYTES_PER_SECOND
# Who lacks more than another by less than this share of it all is not the worse head for that.
ALIKE_SHARE = 0.01


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
    """Who has all of it already; else who can be dialled and has most of it, which the hub need not send once more;
    else who has the fastest link.
    """
    tail = {one.name for one in candidates if member_of(one, candidates).belongs_on_the_tail}
    most = max(one.missing_bytes or 0 for one in candidates)
    missing = {one.name: most if one.missing_bytes is None else one.missing_bytes for one in candidates}
    least = min((missing[one.name] for one in candidates if one.name not in tail), default=0)

    def rank(one: Candidate) -> tuple[bool, bool, bool, float, int]:
        lacks_more = missing[one.name] - least > ALIKE_SHARE * most
        link = one.link_bytes_per_second or one.seen_bytes_per_second or 0.0
        return one.missing_bytes != 0, one.name in tail, lacks_more, -link, missing[one.name]

    return min(candidates, key=rank).name


def worth_remembering(best_bytes_per_second: Mapping[str, float], limited: bool) -> dict[str, float]:
    """host -> the best rate at which it received, as far as that says something of the host's own link.

    limited: a rate limit was set, so that it says nothing.
    """
    fastest = max(best_bytes_per_second.values(), default=0.0)
    if limited or fastest < TELLING_BYTES_PER_SECOND:
        return {}
    return {host: rate for host, rate in best_bytes_per_second.items() if rate}


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
