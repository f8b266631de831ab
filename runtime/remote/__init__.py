"""An engine over TCP: keys, and the proxy, a process beside the supervisor that lets in whoever has one of them."""
