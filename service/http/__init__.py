"""The HTTP API: one route table, from which both the application and its OpenAPI document are made."""
