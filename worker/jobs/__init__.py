"""Carries out jobs: runs dead letters or kept callbacks again, or discards dead letters, as an operator asked."""
