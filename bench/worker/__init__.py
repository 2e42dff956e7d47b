"""The consumers that are measured, a file each, and how they tell what they handled."""
