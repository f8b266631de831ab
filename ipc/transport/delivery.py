"""Result of a send to one of many peers."""

from __future__ import annotations

from typing import Literal

Delivery = Literal["sent", "unread", "gone"]
"""Result of a send: unread, if the peer is connected and leaves so much unread that no more fits."""
