"""Generated messages and stubs of package fleet.v1. Regenerate with `make proto`."""
