"""`python -m expertflow.workers.surveyor.diagnosis REQUEST FILE`: the kernels of this machine, for `expertflow doctor`.

REQUEST is a `DiagnosisRequest` as JSON. Writes a JSON line for each `Progress`. Exit code 0: FILE holds a
`KernelReport`; 2: it holds an `ErrorFacts`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...configs.user_cache import cache_folder
from ...errors import ExpertFlowError
from ...ipc.messages import AskSurvey, ErrorFacts, Progress
from ..checkpoint.survey import Survey
from ..kernels.report import DiagnosisRequest, KernelReport
from .entry import answer_survey_request


def main() -> int:
    """Write the report, or the error; return the exit code."""
    request = msgspec.json.decode(sys.argv[1], type=DiagnosisRequest)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        answer, code = diagnose(request), 0
    except ExpertFlowError as error:
        answer, code = ErrorFacts.of(error), 2
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(answer))
    return code


def diagnose(request: DiagnosisRequest) -> KernelReport:
    """Return the report; with a model kernels are timed if none were kept. Raises what a survey raises."""
    survey = _survey(request) if request.model else None
    report = report_kernels()
    if survey is None:
        return report
    table = None if request.on_device else survey.kernels
    return msgspec.structs.replace(report, table=table, notices=survey.notices)


def report_kernels() -> KernelReport:
    """Return the report of the machine alone."""
    import torch

    from ..kernels.cpu import cpu_flags, cpu_name
    from ..kernels.machine import CAPS, FLAGS_THAT_MATTER
    from ..kernels.native import NativeKernels, missing_reason

    native, flags = NativeKernels.open(), cpu_flags()
    return KernelReport(
        cpu=cpu_name(),
        flags=[flag for flag in FLAGS_THAT_MATTER if flag in flags],
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        capability=torch.backends.cpu.get_cpu_capability(),
        caps={name: os.environ[name] for name in CAPS if os.environ.get(name)},
        native="" if native is None else native.isa,
        variants=[] if native is None else native.isas(),
        missing=missing_reason() if native is None else "",
        cache=_cache(),
    )


def _survey(request: DiagnosisRequest) -> Survey:
    question = AskSurvey(
        request.model,
        request.revision,
        request.dtype,
        request.generation_settings,
        request.kernels,
        request.on_device,
        request.measure,
    )
    return answer_survey_request(question, _report)


def _cache() -> str:
    try:
        return str(cache_folder())
    except RuntimeError:  # a user without a home
        return ""


def _report(progress: Progress) -> None:
    sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
