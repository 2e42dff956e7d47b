"""`maskline schema`: the JSON that maskline makes, described for programs."""
