"""Sends the worker's commands to Redis: Lua scripts as typed functions, and what they take packed."""
