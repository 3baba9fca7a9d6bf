"""The router: one request in, one decision out, over whichever path policy and health admit."""
