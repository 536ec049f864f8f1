"""What is settled above a position, written into the commit's metadata so that the next owner does not send it again.

Kafka keeps one position a partition, and it stands still at the first event without outcome. Conversations do
not wait for each other, so at any moment many events above it are settled; after a rebalance, a restart or a
crash all of them would be read, and sent, once more. Kafka stores a text of up to 4,096 bytes with each
position (broker setting ``offset.metadata.max.bytes``): here it says which of the offsets above are settled.

Decides how that is written and read; when, is the intake's business. What does not fit is left out from the
top: it is sent again, as it would be without this.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

FORM = "0:"
"""What the text, or with a ledger its last word, begins with; any other is none of ours and says nothing."""
MAX_BYTES = 4000
"""Of the text; the broker's default limit is 4,096."""
MAX_SPAN = 1 << 18
"""Offsets above the position that are looked at; further ones are left out."""
ZERO, ONE = b"01"


def write(position: int, settled: Collection[int]) -> str:
    """Write which offsets above ``position`` are settled; empty when there is none."""
    first = position + 1
    span = max(0, min(max(settled, default=position) - position, MAX_SPAN))
    # A digit an offset, the first one last, as a number to the base 2: so that packing it costs no loop.
    digits = bytearray((ZERO,)) * span
    for offset in settled:
        if 0 <= offset - first < span:
            digits[first - offset - 1] = ONE
    while ONE in digits:
        bits = int(digits, 2).to_bytes((len(digits) + 7) // 8, "little")
        text = FORM + base64.b85encode(zlib.compress(bits)).decode("ascii")
        if len(text) <= MAX_BYTES:
            return text
        span = min(span // 2, span * MAX_BYTES // len(text))
        del digits[: len(digits) - span]
    return ""


def read(position: int, text: str) -> set[int]:
    """Read what `write` wrote beside ``position``, last in the text; one of another form says nothing."""
    text = text.rpartition(" ")[2]
    if not text.startswith(FORM):
        return set()
    try:
        bits = zlib.decompressobj().decompress(base64.b85decode(text.removeprefix(FORM)), MAX_SPAN // 8)
    except (ValueError, binascii.Error, zlib.error):
        return set()
    digits = f"{int.from_bytes(bits, 'little'):b}"
    return {position + distance for distance, digit in enumerate(reversed(digits), 1) if digit == "1"}
