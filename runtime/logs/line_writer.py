"""Writes lines to a stream, which perhaps nobody reads: at once if possible, else from a queue. Never blocks.

A full pipe blocks the writer, and with the event loop everything else: leases lapse, the stop is lost. The flag that
would prevent it (O_NONBLOCK) belongs to the open file, which processes share: set, it would harm the others.

| stream | how a write avoids blocking |
| --- | --- |
| file, /dev/null, a stream in memory | it never blocks |
| pipe, terminal | it is opened once more, without blocking, for this process alone |
| socket, as journald gives | MSG_DONTWAIT |
| pipe or terminal of another user | RWF_NOWAIT; on an old kernel it is asked first whether it takes PIPE_BUF bytes |

So an ordinary line is written when `write` returns, and a crash loses none. Other lines wait in a bounded queue, which
a thread empties; if no thread can be started, the next calls do. When the queue is full, lines are dropped and counted
until the waiting ones have been written; then one line says how many. A line of at most PIPE_BUF bytes is written in
one piece, a longer one in consecutive pieces if the stream takes no more at once.
"""

import _thread
import contextlib
import errno
import io
import os
import re
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TextIO

QUEUE_MAX_LINES: Final = 20_000
QUEUE_MAX_BYTES: Final = 8 << 20
"""A burst that a slow reader gets through in seconds; more would be memory taken from the work."""
BATCH_LINES: Final = 100
"""Written while the lock is held: another thread that logs meanwhile waits for that long and no longer."""
PIECE_MAX_BYTES: Final = select.PIPE_BUF
"""Bytes that a pipe that is reported writable is sure to take, in one piece."""
YIELD_S: Final = 0.0005
"""Between batches, so that another thread that logs gets the lock."""
RETRY_S: Final = 0.05
"""Between tries on a stream that is reported writable and takes nothing."""
FINISH_MAX_S: Final = 2.0
FINISH_SILENCE_S: Final = 0.3
"""How long the exit waits for a reader: FINISH_MAX_S while it reads, FINISH_SILENCE_S while it does not."""

Send = Callable[[bytes], int]
"""Writes as many of the bytes as possible and returns how many. Raises BlockingIOError if the stream takes none now,
OSError or ValueError if it never will."""


class LineWriter:
    """Writes lines to `stream` in order, from any thread and from signal handlers. Never blocks, never raises.

    `report(count)`: makes the line that says how many were dropped.
    """

    def __init__(self, stream: TextIO | None, report: Callable[[int], bytes]) -> None:
        self.dropped = 0
        """Lines that were lost: the queue was full, or the stream refused them."""
        self.broken = False
        """Whether the stream is a pipe whose reader is gone for good."""
        self.before_finish: Callable[[], object] = lambda: None
        """Called first by `finish`: writes the bytes that a caller holds back."""
        self._unreported = 0
        self._refused = False
        """Whether the stream refused the last line: the reader is gone, or the disk is full."""
        self._report = report
        self._sink = _open(stream)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._overflowed = False
        self._writing = False
        self._thread_runs = False
        self._lock = threading.RLock()  # a signal handler may log while its thread does

    @property
    def waiting(self) -> int:
        """Lines in the queue."""
        return len(self._queue)

    def write(self, line: bytes) -> None:
        """Write a line (with its line end), or queue it, or drop and count it."""
        with self._lock:
            if self._overflowed or not self._has_room(len(line)):
                self._overflowed = True
                self._drop()
            else:
                self._enqueue(line)
            if self._thread_runs:
                return
            self._flush()
            if not self._writing and not self._is_done():
                self._start_thread()

    def finish(self) -> None:
        """Write the queued lines, as long as the stream takes them, and for FINISH_MAX_S at most."""
        self.before_finish()
        until = time.monotonic() + FINISH_MAX_S
        while (left_s := min(until - time.monotonic(), FINISH_SILENCE_S)) > 0:
            if not self._lock.acquire(timeout=left_s):
                return
            try:
                went = self._flush()
                if self._is_done():
                    return
            finally:
                self._lock.release()
            if not went and not self._wait(left_s):
                return

    def after_fork(self) -> None:
        """In the child of a fork: forget the queue, which the parent writes, and make a new lock, as a thread may hold
        the old one.
        """
        self._lock = threading.RLock()
        self._queue.clear()
        self._queued_bytes = self._unreported = 0
        self._overflowed = self._writing = self._thread_runs = False

    def descriptor(self) -> int:
        """A file descriptor for code that writes to the stream at a crash; it does not block, if there is such a one.

        Raises OSError if there is none, nor /dev/null.
        """
        if self._sink.descriptor >= 0 and (not self._sink.blocks or self._wait(0)):
            return self._sink.descriptor
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close what was opened here. Nothing may be written any more."""
        self._sink.close()

    # Inside

    def _has_room(self, size: int) -> bool:
        queue = self._queue
        return not queue or (len(queue) < QUEUE_MAX_LINES and self._queued_bytes + size <= QUEUE_MAX_BYTES)

    def _enqueue(self, line: bytes) -> None:
        self._queue.append(line)
        self._queued_bytes += len(line)

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _flush(self) -> bool:
        """Write a batch as far as the stream takes it. Returns whether it took any. A line that a signal handler logs
        joins it.
        """
        if self._writing:
            return False
        self._writing = True
        try:
            return self._write_batch()
        finally:
            self._writing = False

    def _write_batch(self) -> bool:
        queue, moved = self._queue, False
        for _ in range(BATCH_LINES):
            if not queue:
                self._overflowed = False
                if self._is_done():
                    break
                self._enqueue(self._report(self._unreported))
                self._unreported = 0
            line = queue[0]
            try:
                size = self._sink.send(line)
                self._refused = False
            except BlockingIOError:
                break
            except (OSError, ValueError) as error:
                self._refused = True
                self.broken = isinstance(error, BrokenPipeError)
                self._drop()
                size = len(line)
            moved = True
            self._queued_bytes -= size
            if size == len(line):
                queue.popleft()
            else:
                queue[0] = line[size:]
        return moved

    def _is_done(self) -> bool:
        """Whether no line waits, and no count of dropped ones is due to a stream that takes it."""
        return not self._queue and (self._refused or not self._unreported)

    def _start_thread(self) -> None:
        # Not threading.Thread: it waits for the thread's first step, and takes locks that a signal handler may hold up.
        with contextlib.suppress(RuntimeError):  # no thread can be started: the next line tries again
            _thread.start_new_thread(self._empty_queue, ())
            self._thread_runs = True

    def _empty_queue(self) -> None:
        """Write the queue as the stream takes it, then end. Runs in the thread."""
        went = True
        while True:
            before = went
            with self._lock:
                went = self._flush()
                if self._is_done():
                    self._thread_runs = False
                    return
            if went:
                time.sleep(YIELD_S)
                continue
            self._wait(FINISH_MAX_S)
            if not before:
                time.sleep(RETRY_S)

    def _wait(self, within_s: float) -> bool:
        """Wait until the stream is reported writable; whether it is."""
        if self._sink.descriptor < 0:
            return True
        poll = select.poll()  # and not select, which knows no descriptor beyond 1,023
        poll.register(self._sink.descriptor, select.POLLOUT)
        return bool(poll.poll(within_s * 1000))


def nonblocking_text_stream(
    writer: LineWriter, stream: TextIO, hide: Callable[[bytes], bytes] = lambda data: data
) -> io.TextIOWrapper:
    """A text stream in place of `stream` that writes by `writer`, line by line, and never blocks.

    `hide`: replaces phone numbers in what is written. The stream raises BrokenPipeError when the reader is gone, as
    `stream` would, but only once.
    """
    raw = io.BufferedWriter(_RawStream(writer, stream, hide))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


OPEN_END_MAX_BYTES: Final = 512
"""Bound on the bytes held back because a number may go on in the next piece."""
_OPEN_END: Final = re.compile(rb"[0-9%\\&\x80-\xff][^A-Za-z\r\n]*\Z")


class _RawStream(io.RawIOBase):
    """Takes bytes in pieces: lines, but also parts of one that is long, or flushed in the middle.

    So a possible beginning of a number is held back until the next piece comes, or the process ends.
    """

    def __init__(self, writer: LineWriter, stream: TextIO, hide: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._writer = writer
        self._stream = stream
        self._hide = hide
        self._held_back = b""
        self._has_raised = False
        writer.before_finish = self._write_held_back

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = self._held_back + bytes(data)
        self._held_back = b""
        if not piece.endswith(b"\n"):
            end = _OPEN_END.search(piece, max(0, len(piece) - OPEN_END_MAX_BYTES))
            if end is not None:
                piece, self._held_back = piece[: end.start()], end[0]
        if piece:
            self._writer.write(self._hide(piece))
        if self._writer.broken and not self._has_raised:
            self._has_raised = True
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return len(data)

    def _write_held_back(self) -> None:
        kept, self._held_back = self._held_back, b""
        if kept:
            self._writer.write(self._hide(kept))

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _Sink(NamedTuple):
    send: Send
    descriptor: int = -1
    """The descriptor to wait for; -1 if no write blocks."""
    blocks: bool = False
    """Whether a plain write to the descriptor may block."""
    close: Callable[[], None] = lambda: None


def _open(stream: TextIO | None) -> _Sink:
    if stream is None:  # the process was started with stderr closed
        return _Sink(len)
    try:
        descriptor = stream.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, AttributeError, ValueError):
        return _Sink(_to_memory(stream))
    if stat.S_ISSOCK(kind):
        sock = socket.socket(fileno=os.dup(descriptor))
        return _Sink(
            lambda data: sock.send(data, socket.MSG_DONTWAIT), descriptor, blocks=True, close=sock.close
        )
    if not stat.S_ISFIFO(kind) and not os.isatty(descriptor):
        return _Sink(lambda data: os.write(descriptor, data), descriptor)
    try:
        # On Linux this is another open file; elsewhere /dev/fd is but the same one again.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return _Sink(_PolledWrite(descriptor), descriptor, blocks=True)
    return _Sink(lambda data: os.write(own, data), own, close=lambda: os.close(own))


def _to_memory(stream: TextIO) -> Send:
    def send(data: bytes) -> int:
        stream.write(data.decode())
        stream.flush()
        return len(data)

    return send


class _PolledWrite:
    """Writes to a descriptor that others share without blocking, and without a change of its flags."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._no_wait: int | None = getattr(os, "RWF_NOWAIT", None)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def __call__(self, data: bytes) -> int:
        if self._no_wait is not None:
            try:
                return self._written_without_waiting(data, self._no_wait)
            except BlockingIOError:
                raise
            except OSError:
                self._no_wait = (
                    None  # the kernel has none for this; the write below meets any other fault too
                )
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.write(self._descriptor, data[:PIECE_MAX_BYTES])

    def _written_without_waiting(self, data: bytes, flags: int) -> int:
        pwritev: Any = os.pwritev  # not on macOS
        return int(pwritev(self._descriptor, [data], -1, flags))
