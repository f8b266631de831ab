"""Batch files in OpenAI's format: lines of requests in, lines of results out, resumed after a kill.

`index` knows where lines are and which have ended, `store` owns the files, `runner` sends requests to an engine.
"""
