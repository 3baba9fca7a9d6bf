"""The local path: the inference contract over a Triton server."""
