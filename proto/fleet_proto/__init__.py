"""The contract between the command line, the controller and the agents."""

# The newest protocol that this software speaks, and the oldest that it still serves. Raise PROTOCOL with
# every change of a .proto that an older side would misread; raise MINIMUM_PROTOCOL only with a way out.
PROTOCOL = 1
MINIMUM_PROTOCOL = 1
