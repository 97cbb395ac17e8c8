"""The order of a rollout: which hosts come in which wave, what happens next, and how it is undone. Pure."""
