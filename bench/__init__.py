"""`make bench`: how fast maskline is, beside what one would otherwise write or take. See bench/README.md."""
