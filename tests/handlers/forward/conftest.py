import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forward_kit import write_config

MODULE = "maskline.handlers.forward"


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file with endpoints and makes it the one that `handlers.forward` reads; the module's name."""

    def configure(*tables: Mapping[str, Any]) -> str:
        monkeypatch.setenv("MASKLINE_FORWARD_CONFIG", str(write_config(tmp_path / "forward.toml", *tables)))
        monkeypatch.delitem(sys.modules, MODULE, raising=False)
        return MODULE

    yield configure
    sys.modules.pop(MODULE, None)
