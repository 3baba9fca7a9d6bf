"""The audit service: an append-only log of decisions that can prove itself."""
