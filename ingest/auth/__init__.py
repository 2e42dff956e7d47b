"""Decides whether a request is a genuine callback of Plivo's: path, account, signature, parameters. Pure."""
