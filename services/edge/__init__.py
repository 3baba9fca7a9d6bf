"""All services of a small node in one process."""
