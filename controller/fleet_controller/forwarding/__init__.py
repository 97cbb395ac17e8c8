"""Forwards: a loopback endpoint of a host, brought to this machine by OpenSSH and kept up.

record.py       what is written down of one forward; processes.py: whose process it is
ssh_command.py  the ssh that carries it; causes.py: why that ssh ended
supervisor.py   one small process per forward, started by manage.py; it imports the standard library alone, since it
                stays for days beside the user's other programs
"""
