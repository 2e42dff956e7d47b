"""`make bench`: how fast maskline is, compared with what one would write or use instead. See bench/README.md."""
