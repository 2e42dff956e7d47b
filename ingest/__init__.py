"""Ingest: HTTP in, Redis stream out."""

from maskline.runtime.startup.module_start import prepare

prepare("maskline.ingest")
