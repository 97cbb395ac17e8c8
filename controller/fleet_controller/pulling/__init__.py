"""Pulls in fleet.db, and what is reckoned about them without any host."""
