"""Where a model server answers, as a client writes it."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether only programs of the same machine reach this address: an IP address, or "localhost"."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def base_url(address: str, port: int) -> str:
    """As "http://127.0.0.1:8100/v1"; an IPv6 address gets its brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"


def tunnel_command(host: str, bind_address: str, port: int) -> str:
    """The OpenSSH command that brings a server on a host's loopback to this machine; "" where none is needed."""
    if not is_loopback(bind_address):
        return ""
    target = f"[{bind_address}]" if ":" in bind_address else bind_address
    return f"ssh -N -L {port}:{target}:{port} {host}"
