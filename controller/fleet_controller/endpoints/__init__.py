"""Where models answer, as seen from this machine.

addresses.py  which addresses a service may have here: pure
reach.py      which of them answers: asked over TCP and HTTP
formats.py    what other programs are given: pure
"""
