"""The names in certificates. They look like DNS names, since TLS compares such; nobody ever looks one up."""

DOMAIN = "fleet.internal"
CONTROLLER = f"controller.{DOMAIN}"


def host_name(machine_id: str, generation: int) -> str:
    """A host's standing identity. Revoking raises the generation, so that an old certificate names nobody."""
    return f"g{generation}.{machine_id}.hosts.{DOMAIN}"


def pull_name(pull_id: str, node: str) -> str:
    """A host's part in one pull; `node` is a label of letters, digits and dashes, as is `pull_id`."""
    return f"{node}.{pull_id}.pulls.{DOMAIN}"
