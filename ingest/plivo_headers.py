"""The names of the headers that Plivo signs its callbacks with.

Plivo sends the V3 headers today; V2 are their predecessors (MASKLINE_ACCEPT_V2). A header with `Ma` bears a signature
by the main account's token; it comes beside the same nonce.
"""

from typing import Final

BEGINNING: Final = "X-Plivo-Signature-"
"""With it begins the name of each of them."""
SIGNATURE_V3: Final = "X-Plivo-Signature-V3"
SIGNATURE_MA_V3: Final = "X-Plivo-Signature-Ma-V3"
NONCE_V3: Final = "X-Plivo-Signature-V3-Nonce"
SIGNATURE_V2: Final = "X-Plivo-Signature-V2"
SIGNATURE_MA_V2: Final = "X-Plivo-Signature-Ma-V2"
NONCE_V2: Final = "X-Plivo-Signature-V2-Nonce"

ALL: Final = (SIGNATURE_V3, SIGNATURE_MA_V3, NONCE_V3, SIGNATURE_V2, SIGNATURE_MA_V2, NONCE_V2)
