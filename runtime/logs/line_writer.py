"""Lines onto a stream that perhaps nobody reads: written at once where that goes, else queued, and never waited for.

A full pipe blocks whoever writes to it, and with the event loop everything stands: leases lapse, the stop is lost. The
flag that would prevent it (O_NONBLOCK) belongs to the open file, which processes share: set, it would harm the others.

| stream | what keeps a write from blocking |
| --- | --- |
| file, /dev/null, a stream in memory | nothing need |
| pipe, terminal | it is opened once more, without blocking, for this process alone |
| socket, as journald gives | MSG_DONTWAIT |
| pipe or terminal of another user | RWF_NOWAIT; on an old kernel it is asked first whether it takes PIPE_BUF bytes |

So the ordinary line is written when `write` returns, and a crash loses none. What does not go waits in a bounded queue,
which a thread of its own empties; where no thread can be had, the next lines do. The queue full, lines are dropped and
counted until what waits has been written; then one line tells how many. A line goes out in one piece if it has at most
PIPE_BUF bytes, in pieces that follow each other if it is longer and the stream takes no more.
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
"""Written in one go, lock held: whoever logs meanwhile waits for that long and no longer."""
PIECE_MAX_BYTES: Final = select.PIPE_BUF
"""What a pipe that says it is writable takes for sure, and in one piece."""
YIELD_S: Final = 0.0005
"""Between batches: whoever wants to log meanwhile gets the lock."""
RETRY_S: Final = 0.05
"""Between tries on a stream that says it is writable and takes nothing."""
FINISH_MAX_S: Final = 2.0
FINISH_SILENCE_S: Final = 0.3
"""How long the exit waits for a reader: as long as he reads, and no longer than the first. Nobody may be there."""

Send = Callable[[bytes], int]
"""Writes what goes of some bytes and returns how many. Raises BlockingIOError where none go now, OSError or ValueError
where none ever will."""


class LineWriter:
    """Writes lines to `stream` in order, from any thread and from signal handlers. Never blocks, never raises.

    `report`: makes the line that tells how many were dropped.
    """

    def __init__(self, stream: TextIO | None, report: Callable[[int], bytes]) -> None:
        self.dropped = 0
        """Lines that were lost: the queue was full, or the stream refused them."""
        self.broken = False
        """Whether a line met a pipe whose reader is gone for good."""
        self.before_finish: Callable[[], object] = lambda: None
        """Called first by `finish`: whoever keeps something back writes it."""
        self._unreported = 0
        self._refused = False
        """Whether the stream has refused the last line: the reader is gone, the disk is full."""
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
        """Write a line, which ends with a line end, or queue it, or drop it."""
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
        """Write what waits, as long as somebody reads, and at most FINISH_MAX_S."""
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
        """In the child: what waits is the parent's to write, and its lock may have been held."""
        self._lock = threading.RLock()
        self._queue.clear()
        self._queued_bytes = self._unreported = 0
        self._overflowed = self._writing = self._thread_runs = False

    def descriptor(self) -> int:
        """For what writes to the stream by itself at a crash: one that does not block, as far as there is one.

        Raises OSError where there is none, nor /dev/null.
        """
        if self._sink.descriptor >= 0 and (not self._sink.blocks or self._wait(0)):
            return self._sink.descriptor
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give back what was opened. Nothing may be written any more."""
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
        """Write what goes of a batch; whether it came on. A line logged meanwhile by a signal handler joins it."""
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
        """Nothing waits, and nothing is to be reported to a stream that takes it."""
        return not self._queue and (self._refused or not self._unreported)

    def _start_thread(self) -> None:
        # Not threading.Thread, which waits for the thread's first step and takes locks that a signal handler may meet.
        with contextlib.suppress(RuntimeError):  # no thread to be had: the next line tries again
            _thread.start_new_thread(self._empty_queue, ())
            self._thread_runs = True

    def _empty_queue(self) -> None:
        """Write the queue as the stream takes it, and end."""
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
        """Until the stream takes more, as far as it says; whether it does."""
        if self._sink.descriptor < 0:
            return True
        poll = select.poll()  # and not select, which knows no descriptor beyond 1,023
        poll.register(self._sink.descriptor, select.POLLOUT)
        return bool(poll.poll(within_s * 1000))


def nonblocking_text_stream(
    writer: LineWriter, stream: TextIO, hide: Callable[[bytes], bytes] = lambda data: data
) -> io.TextIOWrapper:
    """A text stream in place of `stream`, which writes by `writer`: line by line, and without waiting.

    `hide`: makes what may be written of what is to be. Raises BrokenPipeError when the reader is found to be gone, as
    `stream` would, but once only.
    """
    raw = io.BufferedWriter(_RawStream(writer, stream, hide))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


OPEN_END_MAX_BYTES: Final = 512
"""Of what is kept back because a number may go on in the next piece."""
_OPEN_END: Final = re.compile(rb"[0-9%\\&\x80-\xff][^A-Za-z\r\n]*\Z")


class _RawStream(io.RawIOBase):
    """Takes the bytes in pieces: lines, but also parts of one that is long, or flushed in its midst.

    So what may be the beginning of a number stays until the next piece comes, or the process ends.
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
    """To wait for; -1 where nobody need."""
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
    """Writes to what is shared, by the means that leave its flags alone."""

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
                    None  # the kernel has none for this; what else is wrong, the write below meets too
                )
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.write(self._descriptor, data[:PIECE_MAX_BYTES])

    def _written_without_waiting(self, data: bytes, flags: int) -> int:
        pwritev: Any = os.pwritev  # not on macOS
        return int(pwritev(self._descriptor, [data], -1, flags))
