"""Several engines on several hosts as one: routing by experts, streams that survive, simulation. Ray is in `hosts`."""
