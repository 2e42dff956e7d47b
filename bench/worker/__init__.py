"""The consumers that are measured, a file each, and how they report what they handled."""
