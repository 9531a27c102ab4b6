"""Decoders that write: their KV caches, batches of prompts, sampling, and columns of prompts."""
