"""`maskline check`: what handler modules declare, and every mistake in them, without Redis."""
