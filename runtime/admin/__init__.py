"""Serves the admin port: health, readiness and metrics."""
