"""Turn commands into events: queue them, decide them a batch at a time, and append the events."""
