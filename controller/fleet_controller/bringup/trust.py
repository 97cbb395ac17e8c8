"""Accepting a host key that a person has looked at."""

from fleet_controller.domain.events import HostKeyQuestion


def trust_host_key(question: HostKeyQuestion) -> bool:
    """Adds the key to known_hosts; False where it is there already.

    Raises ValueError where the line and the fingerprint shown do not belong together, OSError for an unwritable file.
    """
    from fleet_controller.transport import known_hosts  # loads asyncssh

    return known_hosts.trust_host_key(question)
