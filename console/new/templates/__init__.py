"""The files that `maskline new` writes, as they are for a module named `my_fares`."""
