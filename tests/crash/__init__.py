"""Crashes: every command killed, interrupted, out of space or without power at every point, and the store judged afterwards."""
