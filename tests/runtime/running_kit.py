"""Real processes and signals. Waiting is for a line, or for the end of a pipe that all processes hold."""

import os
import signal
import subprocess
import sys
import threading

LIMIT_S = 30
"""Far above what any test here takes; then everything is killed and the test fails at its next line."""


class Running:
    """A process, its lines, and those whom it told about."""

    def __init__(self, *argv, env):
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.pids = [self.process.pid]
        self.timer = threading.Timer(LIMIT_S, self.kill)
        self.timer.start()

    def line(self):
        return self.process.stdout.readline().split()

    def children(self, count):
        """The pids of the next `count` children that say they are ready, by index."""
        pids = {}
        while len(pids) < count:
            word, index, pid = self.line()
            if word == "ready":
                pids[int(index)] = int(pid)
        self.pids += pids.values()
        return pids

    def signal(self, signum):
        self.process.send_signal(signum)

    def end(self):
        """Exit code, rest of stdout, stderr, once all processes that hold the pipes have ended."""
        out, err = self.process.communicate()
        self.timer.cancel()
        return self.process.returncode, out, err

    def kill(self):
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


PRELUDE = """
import asyncio, os, signal, sys, threading, time
if "no-uvloop" in sys.argv:
    sys.modules["uvloop"] = None
from maskline.runtime.process import run as process, signals, stop_deadline, supervisor, supervisor_pipe
from maskline.runtime.logs import configure_logging
from maskline.schemas.errors import *
from maskline.schemas.settings import Settings
configure_logging(Settings(log_format="json"))

def say(*words):
    "One write a line, so that the lines of several processes do not mix."
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def once(name):
    "Whether nobody has asked for this name before, in any process of the test."
    try:
        open(os.path.join(os.path.dirname(sys.argv[0]), name), "x").close()
    except FileExistsError:
        return False
    return True
"""
