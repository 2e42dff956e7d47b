"""The command `maskline`: a module for each subcommand, and what they share."""
