"""The port that Ray Serve opens in every replica, kept from other networks."""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica

from ....errors import EngineError

_NAME = "add_port_to_grpc_server"
_EVERYWHERE = "[::]"


def keep_port_private() -> None:
    """Let Serve bind this replica's port to the address of its node; call it in a deployment's constructor.

    After the constructor Ray Serve 2.60 (`ReplicaBase._on_initialized`) opens a gRPC port for calls of other
    deployments at all addresses, in a Ray that listens at the loopback address as well. It asks for no key, and its
    messages are pickled: whoever reaches it has the rights of Ray's user. Raises EngineError if Serve has changed.
    """
    bind = getattr(replica, _NAME, None)
    if bind is None:
        what = "opens the port of a replica in another way than Ray Serve 2.60, so it could not be kept private"
        raise EngineError(what, "cluster", "Install the version of ray that constraints.txt names")
    node = ray.util.get_node_ip_address()
    host = f"[{node}]" if ":" in node else node

    def bind_at_node(server: Any, address: str) -> int:
        return bind(server, address.replace(_EVERYWHERE, host))

    setattr(replica, _NAME, bind_at_node)
