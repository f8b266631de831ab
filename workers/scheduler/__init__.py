"""Requests in, steps out: admission, batching, KV reservation and the ledger of requests."""
