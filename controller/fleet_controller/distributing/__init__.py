"""How a model is relayed through a fleet: who fetches from whom, and what changes when something goes wrong.

All pure. model.py the hosts and the topology · ordering.py the first topology · repair.py the next one after a
failure · slowness.py who is slow · messages.py what relays tell and are told · conductor.py from events to orders.
"""
