"""Decodes callbacks by templates of their layouts, with the results of `schemas.decode`, the reference."""
