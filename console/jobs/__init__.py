"""Replays and discards as jobs, which workers carry out: commands start them, follow them, list them and stop them."""
