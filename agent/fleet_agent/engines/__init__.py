"""Installed engines as folders on the disk: what they take, who needs them, and taking them away."""
