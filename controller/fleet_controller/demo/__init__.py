"""`fleet demo`: the product shown on one machine, without GPU, SSH set-up or model hub."""
