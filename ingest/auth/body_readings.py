"""Decides how a request's body may be read, and in which order the readings are tried. Pure.

The Content-Type never decides alone: proxies join it, clients forget it. A V3 signature covers the parameters, so the
reading that it fits is the one that was meant, even against the type. If no signature covers the body (V2, or
MASKLINE_VERIFY=off), an unmistakable beginning decides, then the type.

| | type says JSON | type says a form, or no type is sent | type says neither |
| --- | --- | --- | --- |
| covered by the signature | JSON, form | form; JSON if it looks so | form; JSON if it looks so |
| not covered, looks like JSON | JSON | JSON, form | JSON |
| not covered, looks like a form | form, JSON | form | form |
| not covered, looks like neither | JSON | form | none: not decodable |
"""

from maskline.schemas.parameters import Reading, looks_like, looks_like_json, named_reading


def signed_readings(content_type: str, body: bytes) -> tuple[Reading, ...]:
    """The readings to check a V3 signature against, the likeliest first.

    JSON only where the body may be JSON: each try costs as much as a request.
    """
    if not body:
        return ("form",)
    if named_reading(content_type) == "json":
        return "json", "form"
    return ("form", "json") if looks_like_json(body) else ("form",)


def unsigned_readings(content_type: str, body: bytes) -> tuple[Reading, ...]:
    """The readings of a body that no signature covers; the first that can be decoded counts."""
    if not body:
        return ("form",)
    named, suggested = named_reading(content_type), looks_like(body)
    return tuple(dict.fromkeys(reading for reading in (suggested, named) if reading is not None))
