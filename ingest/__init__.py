"""Ingest: HTTP in, Redis stream out."""

from maskline.runtime.module_start import prepare

prepare("maskline.ingest")
