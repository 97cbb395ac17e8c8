"""Where a model server answers, as a client writes it."""


def base_url(address: str, port: int) -> str:
    """As "http://127.0.0.1:8100/v1"; an IPv6 address gets its brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"
