"""Supervisors of the real servers that a mesh on one machine needs: Valkey and Triton.

Each supervisor is a class with `await start()` and `await stop()`, also usable with `async with`,
so that the launcher and pytest fixtures share it. Nothing here outlives its parent.
"""
