"""Latency: measured in the TFLite interpreter, and put together from tables of layers."""
