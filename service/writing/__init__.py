"""Commands into events: they wait, are decided a batch at a time, and are appended."""
