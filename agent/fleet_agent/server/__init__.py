"""The agent's gRPC edge: the only place in the agent that knows wire types."""
