"""`python -m expertflow.workers.surveyor.diagnosis REQUEST FILE`: machine and model, for `doctor` and `plan`.

REQUEST is a `DiagnosisRequest` as JSON. Writes a JSON line for each `Progress`. Exit code 0: FILE holds a
`Diagnosis`; 2: it holds an `ErrorFacts`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...configs.user_cache import cache_folder
from ...errors import ExpertFlowError
from ...ipc.messages import AskSurvey, ErrorFacts, Progress
from ..checkpoint.survey import ModelSizes, Survey
from ..kernels.report import DiagnosisRequest, KernelReport
from .answers import DeviceReport, Diagnosis
from .entry import answer_survey_request, has_weights, plan_sizes


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


def diagnose(request: DiagnosisRequest) -> Diagnosis:
    """Return the diagnosis; with a model kernels are timed if none were kept. Raises what a survey raises."""
    sizes = _sizes(request) if request.model else None
    report, devices = report_kernels(), _report_devices(request.devices)
    if not isinstance(sizes, Survey):
        return Diagnosis(kernels=report, sizes=sizes, devices=devices)
    table = None if request.on_device else sizes.kernels
    report = msgspec.structs.replace(report, table=table, notices=sizes.notices)
    return Diagnosis(
        kernels=report,
        sizes=_sizes_alone(sizes),
        devices=devices,
        fingerprint=sizes.fingerprint,
        files=sizes.files,
    )


def _report_devices(names: list[str]) -> list[DeviceReport]:
    if not names:
        return []
    from .device_report import report_device

    return [report_device(name) for name in names]


def _sizes(request: DiagnosisRequest) -> ModelSizes:
    """Return the survey, with the kernel table; the sizes by the configuration if nothing may be downloaded for it."""
    if not request.download and not has_weights(request.model, request.revision):
        return plan_sizes(request.model, request.revision, request.dtype, request.generation_settings, request.choice)
    return _survey(request)


def _sizes_alone(survey: Survey) -> ModelSizes:
    """Return the sizes of a survey without the places of its experts, which take megabytes."""
    return ModelSizes(**{name: getattr(survey, name) for name in ModelSizes.__struct_fields__})


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
        request.choice.experts_in,
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
