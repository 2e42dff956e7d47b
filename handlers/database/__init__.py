"""What `handlers.postgres` stores events with: batches, rows, migrations, partitions, connections.

Importing it raises ConfigError where asyncpg, the extra `postgres`, is not installed.
"""

from importlib.util import find_spec

from maskline.schemas.errors import ConfigError

if find_spec("asyncpg") is None:
    raise ConfigError("maskline.handlers.postgres needs asyncpg: pip install 'maskline[postgres]'")
