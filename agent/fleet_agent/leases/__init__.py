"""Leases: a bench has a device for itself, and the services that were in its way come back, whoever dies."""
