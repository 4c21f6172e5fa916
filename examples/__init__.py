"""What stands on top of the orchestrator, to try and to learn from."""
