"""The front door: what a client may ask, under which name, and which version of an adapter answers."""
