"""The HTTP door: one table of routes, from which both the application and its OpenAPI document are made."""
