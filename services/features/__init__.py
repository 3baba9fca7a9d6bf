"""The feature service: the shared feature store (Feast) at the speed of Redis."""
