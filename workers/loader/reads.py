"""The loader's way to the checkpoint's files: with checksums if they are asked for, and with counted faults."""

from __future__ import annotations

from ...errors import EngineError
from ..checkpoint.survey import Survey
from .transfer.expert_sources import FileSource
from .transfer.expert_sums import ReportProgress, load_or_make_sums
from .transfer.read_checks import ReadFaults, Recorder


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


class Reads:
    """Opens the files of a checkpoint, and counts what goes wrong with them."""

    def __init__(self, verified: bool = False, readers: int = 1, progress: ReportProgress = _silent) -> None:
        """`verified`: compare every expert with its checksum. `readers` threads make checksums that are missing."""
        self.faults = ReadFaults()
        self._verified, self._readers, self._progress = verified, readers, progress

    def open(self, survey: Survey) -> FileSource:
        """Open all files, with the checksums of all experts if they are verified.

        Raises CheckpointError if a file is gone or changed since the survey, EngineError if one cannot be read.
        """
        if not self._verified:
            return FileSource(survey, self.faults)
        recorder = Recorder()
        source = FileSource(survey, self.faults, recorder)
        try:
            source.verify(load_or_make_sums(survey, source, recorder, self._readers, self._progress))
        except OSError as error:
            source.close()
            what = f"cannot be read for its checksums ({error.strerror})"
            raise EngineError(what, str(error.filename or survey.folder), "Check the disk") from error
        except BaseException:
            source.close()
            raise
        return source
