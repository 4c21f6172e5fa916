"""The API under /api/v1: one module per subject, each with its routes."""
