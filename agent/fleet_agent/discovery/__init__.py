"""Model servers on this host that are not ours."""
