"""The cluster on Ray: deployments of Ray Serve, and the commands that start and end them. Needs the extra `ray`."""
