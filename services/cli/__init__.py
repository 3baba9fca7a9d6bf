"""The `twinpath` command and the launcher of the whole mesh on one machine."""
