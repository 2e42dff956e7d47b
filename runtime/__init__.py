"""What every process needs: start, signals, logs, the admin port, connections to Redis."""
