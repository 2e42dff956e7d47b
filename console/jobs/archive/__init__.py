"""`maskline replay --from-archive`: sorts an archive's callbacks by session, and feeds them to the workers."""
