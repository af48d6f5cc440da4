"""Baking deltas into a base, shard by shard, into a model that transformers loads."""
