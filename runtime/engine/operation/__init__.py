"""Orders to a running engine: drain it, change its configuration. Cores without a process, a socket or a clock."""
