"""Model files from host to host while they still arrive: a process of its own on each host of a pull (docs/relay.md).

manifest.py what is moved, in which pieces · control.py orders and events · frames.py, links.py, inflow.py,
outflow.py, tls.py, records.py the wire ·
store.py, resume.py, placing.py pieces on disk, up to the cache · receiving.py, feeding.py from others ·
sourcing.py from the hub or a folder · serving.py to others · node.py all of it together.
"""
