"""The fleet's own certificate authority: who is the controller, who is a host, who takes part in one pull."""
