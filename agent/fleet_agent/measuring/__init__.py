"""What a bench looks at beside its tool: devices, processes that are not ours, and how to wait until a host is idle."""
