"""`maskline dev --reload`: a saved handler module takes the place of the running one."""
