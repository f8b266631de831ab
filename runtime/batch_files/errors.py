"""Errors of batch files that callers tell apart."""

from __future__ import annotations

from ...errors import ExpertFlowError, UsageError


class OutputError(ExpertFlowError):
    """A result cannot be written: the disk is full, a quota is reached, the reader of a pipe has gone."""

    code = "output"


class JobMismatch(UsageError):
    """The files of an earlier run belong to another job, so that this one cannot resume it."""

    code = "job_mismatch"


class InputChanged(UsageError):
    """The file of requests is not the one that was indexed."""

    code = "input_changed"
