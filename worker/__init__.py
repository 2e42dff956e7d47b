"""The worker: a stream in, each session's events in order, handlers called."""

from maskline.runtime.startup.module_start import prepare

prepare("maskline.worker")
