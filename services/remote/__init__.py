"""The remote path: the only door out of the building.

It implements the same `inference.v1` as the local path, over vendors' model APIs, and serves
nothing without the router's grant that fits.
"""
