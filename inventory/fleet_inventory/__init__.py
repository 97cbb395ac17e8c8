"""Hosts, models and chips of a fleet as validated data."""
