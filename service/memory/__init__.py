"""The decision state in memory: what is active or open, and drafts of batches layered above it. Pure."""
