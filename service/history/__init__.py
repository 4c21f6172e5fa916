"""The state out of the log: at a start, of the past, of what has left memory; snapshots shorten the way."""
