"""Profiles of runs: collected from a cluster or this process, and shown in several forms."""
