"""Who this host is to controllers that come over TCP (transport `tls`): one key, made here, and its certificate."""
