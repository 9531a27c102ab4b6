"""Bytes that a network counts for what Dask sends over a link, estimated.

Dask knows the bytes of its messages. The counters of an interface add the headers of each packet,
and the acknowledgements of what comes the other way.
"""

from __future__ import annotations

from distributed.comm import get_address_host

_HEADER_BYTES = 14 + 20 + 32
"""Headers of a packet: Ethernet's, IPv4's, and TCP's with timestamps (RFC 7323)."""
_SEGMENT_BYTES = 1500 - 20 - 32
"""Bytes of a message in a packet of Ethernet's usual 1500 bytes."""
_SEGMENTS_PER_ACKNOWLEDGEMENT = 2
"""Packets that one without content acknowledges (RFC 5681, 4.2)."""


def network_bytes(sent: int, received: int, sender: str, receiver: str) -> int | None:
    """Return the bytes that the sender's interface counts as sent, as far as can be predicted.

    Parameters
    ----------
    sent, received : int
        Bytes of messages from the sender to the receiver, and back.
    sender, receiver : str
        Addresses of the workers.

    Returns
    -------
    int or None
        None where no network is known to lie between them: on one host, or other than TCP.
    """
    if not all(each.startswith(("tcp://", "tls://")) for each in (sender, receiver)):
        return None
    if get_address_host(sender) == get_address_host(receiver):
        return None
    packets = sent / _SEGMENT_BYTES
    packets += received / _SEGMENT_BYTES / _SEGMENTS_PER_ACKNOWLEDGEMENT
    return round(sent + packets * _HEADER_BYTES)
