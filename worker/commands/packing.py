"""What a worker sends and is sent by the thousand: the keys of sessions and their states, in Redis's wire format."""

from collections.abc import Callable, Collection, Iterable

from maskline.runtime.redis.pipeline import Argument, pack
from maskline.worker.ordering.state import SessionState, encode_state


def pack_arguments(*arguments: Argument) -> bytes:
    """Arguments for `packed_command`."""
    return pack(*arguments).partition(b"\r\n")[2] if arguments else b""


def packed_command(count: int, *packed: bytes) -> bytes:
    """A command for a PipelinedConnection, made of `count` packed arguments; its name is the first."""
    return b"*%d\r\n%b" % (count, b"".join(packed))


def pack_keys_in_python(prefix: str, names: Collection[str]) -> bytes:
    """Pack keys: each is the prefix and a name."""
    return pack_arguments(*[prefix + name for name in names])


def pack_states_in_python(states: Iterable[SessionState]) -> tuple[bytes, list[int]]:
    """Pack states as `worker.ordering.state.encode_state` writes them; also the places, from 0, of those that are
    closed.
    """
    those = list(states)
    closed = [place for place, state in enumerate(those) if state.closed]
    return pack_arguments(*map(encode_state, those)), closed


def _quickest() -> tuple[
    Callable[[str, Collection[str]], bytes], Callable[[Iterable[SessionState]], tuple[bytes, list[int]]]
]:
    try:
        from maskline.worker.native import wire  # noqa: PLC0415 - where there was no compiler, we are told so here
    except ImportError:
        return pack_keys_in_python, pack_states_in_python
    return wire.pack_keys, wire.pack_states


pack_keys, pack_states = _quickest()
"""As `pack_keys_in_python` and `pack_states_in_python`; in C where that could be built when maskline was installed."""
