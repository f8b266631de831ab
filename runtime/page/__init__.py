"""The page at `/` of the HTTP server: its files, and the live figures that it is sent."""
