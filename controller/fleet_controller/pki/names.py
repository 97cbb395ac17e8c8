"""The names in certificates. They look like DNS names, since TLS compares such; nobody ever looks one up."""

import secrets

DOMAIN = "fleet.internal"
CONTROLLER = f"controller.{DOMAIN}"


def host_name(label: str, machine_id: str) -> str:
    """A host's standing identity. The label is the controller's, and drawn anew for each enrolment: what machine id a
    host tells makes it nobody else (images are cloned, hosts may lie), and an old certificate names nobody.
    """
    return f"{label}.{machine_id}.hosts.{DOMAIN}"


def new_label() -> str:
    return f"h{secrets.token_hex(8)}"


def pull_name(pull_id: str, node: str) -> str:
    """A host's part in one pull; `node` is a label of letters, digits and dashes, as is `pull_id`."""
    return f"{node}.{pull_id}.pulls.{DOMAIN}"
