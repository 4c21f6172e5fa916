"""The decision state in memory: what is active or open, and a draft of what comes next above it. Pure."""
