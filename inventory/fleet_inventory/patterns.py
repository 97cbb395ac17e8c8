"""Which hosts a user means: `gpu*,@macs,!mac3`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from fleet_inventory.hosts import Host
from fleet_inventory.problems import near


class PatternError(Exception):
    """A pattern that means no host. The text says which part, what is near it, and what there is."""


def select(pattern: str, hosts: Iterable[Host]) -> tuple[Host, ...]:
    """The hosts that `pattern` means, in the order given, each once.

    Parts are separated by commas: a name, a glob, `@group` (also a glob), `key=value` of a label, `all`; `!` before a
    part takes its hosts out, whatever the order. Only exclusions: all others. Raises PatternError when a part, also an
    excluded one (a typo there would touch a host that was to be spared), means no host, or when nothing is left.
    """
    known = tuple(hosts)
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    if not parts:
        raise PatternError("no host was named; 'all' means every host")
    if not known:
        raise PatternError(f"'{pattern}' matches no host: hosts.yaml has none yet; add one under 'hosts:'")
    wanted: set[str] = set()
    excluded: set[str] = set()
    for part in parts:
        (excluded if part.startswith("!") else wanted).update(_matching(part.removeprefix("!").strip(), known))
    if all(part.startswith("!") for part in parts):
        wanted = {host.name for host in known}
    chosen = tuple(host for host in known if host.name in wanted - excluded)
    if not chosen:
        raise PatternError(f"'{pattern}' leaves no host: everything it names is also excluded")
    return chosen


def _matching(part: str, hosts: tuple[Host, ...]) -> set[str]:
    found = {host.name for host in hosts if _means(part, host)}
    if not found:
        raise PatternError(_nothing(part, hosts))
    return found


def _means(part: str, host: Host) -> bool:
    if part == "all":
        return True
    if part.startswith("@"):
        return any(fnmatchcase(group, part[1:]) for group in host.groups)
    if "=" in part:
        key, _, value = part.partition("=")
        return key.strip() in host.labels and fnmatchcase(host.labels[key.strip()], value.strip())
    return fnmatchcase(host.name, part)


def _nothing(part: str, hosts: tuple[Host, ...]) -> str:
    groups = list(dict.fromkeys(group for host in hosts for group in host.groups))
    names = [host.name for host in hosts]
    if part.startswith("@"):
        similar = near(part[1:], groups)
        there_is = f"groups: {', '.join('@' + group for group in groups)}" if groups else "no host is in a group"
        return f"no group '{part}'{_question('@', similar)}; {there_is}"
    if "=" in part:
        pairs = sorted({f"{key}={value}" for host in hosts for key, value in host.labels.items()})
        return f"no host has the label '{part}'{_question('', near(part, pairs))}; " + (
            f"labels: {', '.join(pairs)}" if pairs else "no host has labels"
        )
    stem = part.strip("*?")
    similar = near(part, names) or [name for name in names if stem and stem.lower() in name.lower()][:3]
    text = f"no host matches '{part}'{_question('', similar)}"
    if not similar:
        text += f"; hosts: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    if groups:
        text += f"; groups: {', '.join('@' + group for group in groups)}"
    return text


def _question(prefix: str, similar: list[str]) -> str:
    return f", did you mean {' or '.join(prefix + name for name in similar)}?" if similar else ""
