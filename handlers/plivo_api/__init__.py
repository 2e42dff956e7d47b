"""A client of Plivo's REST API, as far as maskline needs it."""
