"""The data shared by ingest, worker and handlers: the raw callback, the events it becomes, keys, settings, errors.

Imports nothing else of maskline's. Handler authors find the events in `maskline.events`.
"""
