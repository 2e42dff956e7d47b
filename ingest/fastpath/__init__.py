"""Verifies ordinary callbacks by templates of earlier ones, without parsing them. Pure."""
