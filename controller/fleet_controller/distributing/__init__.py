"""How a model is relayed through a fleet: who fetches from whom, and what changes when something goes wrong.

All pure. model.py the hosts and the topology · ordering.py the first topology · repair.py the next one after a
failure · succession.py when a head is followed · holdings.py who has how much · complaints.py who is to blame ·
slowness.py who is slow · messages.py what relays tell and are told · stored.py what outlives the
controller · conductor.py from events to orders.
"""
