"""Keeps refused callbacks that could be Plivo's, and verifies them again when an operator releases them."""
