"""What would run on each host, and whether it fits: pure functions of facts, without I/O or clock."""
