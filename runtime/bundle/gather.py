"""Gathering of a bundle from a running engine, or from all engines of a group."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec
from msgspec import structs

from ... import __version__
from ...configs.schema import Config
from ...errors import UsageError
from ...ipc.messages import Activity, Progress, StageSpans
from ...ipc.shared.rundir import engines_of
from ..client.address import is_remote, run_dir_of
from ..client.watching import Watcher
from ..doctor.checks import judge_machine
from ..doctor.facts import gather_facts
from ..doctor.versions import DISTRIBUTION, least_versions
from ..engine.resources import CONFIGURATION
from ..engine.timeline import Timeline
from ..metrics.collector import build_info, engine_metrics, exposition
from .contents import Bundle, MachineReport, Manifest, Values
from .masking import mask_activity, mask_values

MAX_TIMELINE_BYTES = 256 << 20
"""Bytes of the newest part of a timeline that are taken."""
LOOK_EVERY_S = 0.5
PATIENCE_S = 5.0
"""Time for which the requests of a scheduler that is busy are waited for, after the others have answered."""
Report = Callable[[Progress], None]


def gather_bundle(
    address: str, seconds: float, report: Report, timeline: Path | None = None, keys: Path | None = None
) -> Bundle:
    """Watch the engine at `address` for some seconds, and return a bundle of it.

    `timeline`: file that the engine writes; None: that of its configuration, if it has one. `keys`: folder of
    keys, for an engine over TCP; its configuration is not sent, and machine and versions are those of this one. Raises
    EngineError if no engine answers, UsageError if a file that was named cannot be read.
    """
    configurations = _read_configurations(address)
    with Watcher(address, keys) as watcher:
        activity = _watch(watcher, seconds, report)
        snapshot, history = watcher.snapshot(), watcher.history()
    named = [Path(config.timeline) for config in configurations if config.timeline]
    file = timeline or next((each for each in named if each.is_file()), None)
    manifest = Manifest(
        version=__version__,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        engines=sorted(history),
        timeline="watched" if file is None else "file",
    )
    return Bundle(
        manifest=manifest,
        configurations=_name_configurations(configurations, history),
        versions=installed_versions(),
        machine=examine_machine(),
        snapshot=snapshot,
        history=history,
        activity={engine: mask_activity(each) for engine, each in activity.items()},
        metrics=exposition([build_info(), *engine_metrics(snapshot)]).decode(),
        timeline=_watched_timeline(activity) if file is None else _newest_part(file),
    )


def examine_machine() -> MachineReport:
    """Return what `expertflow doctor` says of this machine, without a process that imports torch."""
    config = Config()
    facts = gather_facts(config)
    system = {"kernel": platform.release(), "system": _distribution(), "processor": _processor()}
    return MachineReport(facts=facts, findings=judge_machine(facts, config, least_versions()), system=system)


def installed_versions() -> dict[str, str]:
    """Return package -> version of ExpertFlow and of all that it asks for, where installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        requirements = []
    names = {match[0] for each in requirements if (match := re.match(r"[\w.-]+", each))}
    return {"python": platform.python_version(), "expertflow": __version__, **_versions(sorted(names))}


def _versions(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_configurations(address: str) -> list[Config]:
    """Return the configurations of the engines at an address; none of one over TCP."""
    if is_remote(address):
        return []
    files = [engine / CONFIGURATION for engine in engines_of(Path(run_dir_of(address)))]
    return [msgspec.json.decode(file.read_bytes(), type=Config) for file in files if file.is_file()]


def _name_configurations(configurations: list[Config], engines: Iterable[str]) -> dict[str, Values]:
    single = list(engines) == [""]
    return {"" if single else config.device: mask_values(structs.asdict(config)) for config in configurations}


def _watch(watcher: Watcher, seconds: float, report: Report) -> dict[str, Activity]:
    """Return what the engines did for some seconds, the spans of all answers together.

    A busy scheduler may tell its requests a little later.
    """
    found: dict[str, Activity] = {}
    spans: dict[str, list[StageSpans]] = {}
    started = time.monotonic()
    while True:
        for engine, activity in watcher.activity().items():
            spans.setdefault(engine, []).extend(activity.spans)
            found[engine] = structs.replace(activity, spans=spans[engine])
        passed = time.monotonic() - started
        report(Progress("bundle", "watching the engine", min(round(passed), round(seconds)), round(seconds)))
        answered = all(activity.requests is not None for activity in found.values())
        if passed >= seconds and (answered or passed >= seconds + PATIENCE_S):
            return found
        time.sleep(min(LOOK_EVERY_S, max(seconds - passed, LOOK_EVERY_S / 10)))


def _watched_timeline(activity: dict[str, Activity]) -> bytes:
    """Return the spans of an activity as a timeline; stages of a group are called ENGINE/STAGE."""
    with tempfile.TemporaryDirectory(prefix="bundle-expertflow-") as folder:
        file = Path(folder, "timeline.json")
        timeline = Timeline(str(file))
        for engine, each in activity.items():
            for published in each.spans:
                timeline.write(f"{engine}/{published.stage}" if engine else published.stage, published.spans)
        timeline.close()
        return file.read_bytes()


def _newest_part(file: Path) -> bytes:
    """Return a timeline, of a long one the newest part with the names of its stages."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            if size <= MAX_TIMELINE_BYTES:
                return opened.read()
            names = [line for line in opened if line.startswith(b'{"ph":"M"')]
            opened.seek(size - MAX_TIMELINE_BYTES)
            opened.readline()
            return b"[\n" + b"".join(names) + opened.read()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), "Leave out --timeline") from error


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
