"""Streams of frames through models on a cluster: sources, flow control, state; built on `Model`."""
