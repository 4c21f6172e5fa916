"""Rebuilds state from the log: at startup, as of the past, or after eviction; snapshots make it faster."""
