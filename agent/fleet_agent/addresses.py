"""What an address says about who is reached by it."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether it is this very machine: an IP address, or "localhost"."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
