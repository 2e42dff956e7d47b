"""The harness for tests of handler modules, and the pytest plugin. Importing this package imports none of it."""
