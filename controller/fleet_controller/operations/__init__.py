"""Effects on hosts: one coroutine a host, so that one host that is down blocks no other."""
