"""What runs on a worker: the store of weights, the cache of sessions, the kernel of a task."""
