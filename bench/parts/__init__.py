"""The parts of `make bench`: each lists its variants, and says how one slice of one is measured."""
