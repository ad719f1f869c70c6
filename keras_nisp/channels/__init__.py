"""Channels by name: what a trace gives.

`trace` walks a model once and names every channel (`tracing.py`). Each layer's rule, whose contract
is in `rule.py`, says what becomes of the names in a call (`call.py`). The result is a `ChannelMap`:
which axes of which variables belong to which channels, and which channels are coupled.
"""
