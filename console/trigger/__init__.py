"""`maskline trigger`: one signed callback at a running node, followed to its handlers."""
