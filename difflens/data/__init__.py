"""Activations and images: collected once, stored in shards, served in shuffled batches of tokens."""
