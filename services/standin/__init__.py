"""The stand-in vendor: a separate process that plays a remote model API. Not part of the product.

It speaks the Open Inference Protocol v2 over HTTP with a bearer token, a price, latency and faults
on demand, and keeps count of all that reaches it. It shares no code with the services: what they
send is checked by someone else's reading of the protocol.
"""
