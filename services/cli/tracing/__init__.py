"""The built-in trace collector: takes OTLP from every process, keeps it in memory, shows trees.

For a laptop without Jaeger. It keeps the newest spans within a bound and forgets them at the end.
"""
