"""Packs the keys and states of sessions into Redis's wire format: a worker sends them by the thousand.

`worker.native.packing` does the same in C.
"""

from collections.abc import Callable, Collection, Iterable

from maskline.runtime.redis.pipeline import Argument, pack
from maskline.worker.ordering.state import SessionState, encode_state


def pack_arguments(*arguments: Argument) -> bytes:
    """Arguments as `packed_command` takes them; their number is not part of it."""
    return pack(*arguments).partition(b"\r\n")[2] if arguments else b""


def packed_command(count: int, *packed: bytes) -> bytes:
    """A command for `PipelinedConnection.send`, of `count` arguments; the command's name is the first of them."""
    return b"*%d\r\n%b" % (count, b"".join(packed))


def pack_keys_in_python(prefix: str, names: Collection[str]) -> bytes:
    """Pack keys, each made of the prefix and a name."""
    return pack_arguments(*[prefix + name for name in names])


def pack_states_in_python(states: Iterable[SessionState]) -> tuple[bytes, list[int]]:
    """Pack states as `worker.ordering.state.encode_state` writes them; also return the indices of the closed ones."""
    those = list(states)
    closed = [place for place, state in enumerate(those) if state.closed]
    return pack_arguments(*map(encode_state, those)), closed


def _in_c_or_python() -> tuple[
    Callable[[str, Collection[str]], bytes], Callable[[Iterable[SessionState]], tuple[bytes, list[int]]]
]:
    try:
        from maskline.worker.native import packing  # noqa: PLC0415 - where there was no compiler, this fails
    except ImportError:
        return pack_keys_in_python, pack_states_in_python
    return packing.pack_keys, packing.pack_states


pack_keys, pack_states = _in_c_or_python()
"""As `pack_keys_in_python` and `pack_states_in_python`: in C, unless there was no compiler at installation."""
