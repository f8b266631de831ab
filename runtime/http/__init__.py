"""The HTTP server: a process of its own beside the supervisor, which speaks to the engine as any client does.

`front` starts and watches it from the command `serve`; everything else runs in the process and needs the extra `serve`.
"""
