"""Routes requests to replicas: expected experts of a prompt, states of replicas, and rules. Pure."""
