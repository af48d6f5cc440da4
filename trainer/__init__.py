"""Training: data to tokens to a run to an adapter in the store, with its provenance."""
