"""Durable jobs: a folder each, a runner process each, events that can be followed from any point."""
