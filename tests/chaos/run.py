"""`make chaos`, as a script: `python tests/chaos/run.py [--duration-s N] [--seed N] …`, see chaos_run."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# The root comes first: folders of tests/ bear the packages' names.
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent)]

from chaos_run import main  # noqa: E402 - found by the path above

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
