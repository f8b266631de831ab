"""The client library: requests to a running engine, completions back (docs/python-api.md).

`async_client` is not imported here: asyncio costs a fifth of a command's start.
"""

from .batch import Batch
from .client import Client
from .completions import Completion, Event, NotDoneInTime
from .images import ImagePrompt
from .options import Prompt, Request

__all__ = ["Batch", "Client", "Completion", "Event", "ImagePrompt", "NotDoneInTime", "Prompt", "Request"]
