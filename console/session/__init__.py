"""`maskline session`: what is known of one session, drawn, as JSON, or as a file that a test can replay."""
