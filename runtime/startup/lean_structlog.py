"""Imports structlog without rich, which a node never uses: that makes its start shorter by a tenth.

structlog imports rich, where that is installed, for tracebacks that show local variables. Our logs have plain ones, as
local variables hold phone numbers (`runtime.logs.rendering`). Whoever else imports rich still gets it.
"""

import sys


def import_structlog() -> None:
    """Import structlog so that it takes rich for not installed. Does nothing where one of them is imported already.

    Call it before any module that imports structlog, and after `search_path.order_search_path`.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # what Python's `import` takes for "there is none"
    try:
        import structlog  # noqa: F401, PLC0415 - this is what for
    finally:
        del sys.modules["rich"]
