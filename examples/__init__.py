"""Programs built on the orchestrator, to try out and to learn from."""
