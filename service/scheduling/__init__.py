"""Timed work: claim and carry out jobs, and end what has expired."""
