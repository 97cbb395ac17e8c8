"""The gRPC edge towards the command line: the same service, resident or embedded in a CLI process."""
