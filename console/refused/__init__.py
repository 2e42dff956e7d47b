"""`maskline refused`: callbacks that were refused, and releasing those that are good by the settings of now."""
