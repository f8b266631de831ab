"""The gateway: speaks the client protocol to clients, and to the engines of all replicas. The core is pure."""
