"""What the controller reasons about: frozen models without I/O. Field names are those of the wire."""
