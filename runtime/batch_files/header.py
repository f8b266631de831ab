"""Header of a job, kept beside its results: what they depend on. Another input, model or option is another job."""

from __future__ import annotations

from pathlib import Path

import msgspec

FORMAT_VERSION = 1
Option = str | int | float | bool | None


class JobHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that the results of a job depend on."""

    version: int = FORMAT_VERSION
    input_sha256: str
    """SHA-256 of the whole file of requests, in hexadecimal."""
    input_bytes: int
    lines: int
    """Lines that are not blank."""
    model: str
    """Name of the model in the results."""
    revision: str
    """Revision of the model on the hub, if one was named."""
    model_digest: str
    """Digest of the model's small files and of the sizes and headers of its weights."""
    options: dict[str, Option]
    """Options that shape tokens; None: not known, as of an engine that was started elsewhere."""
    created: int
    """`created` of every result: seconds since 1970 at which the file of requests was last changed."""


def differences(mine: JobHeader, theirs: JobHeader) -> list[str]:
    """Return what differs between two jobs, in words; empty if one can resume the other."""
    names = {
        "version": "the format of the header",
        "input_sha256": "the file of requests",
        "model": "the name of the model",
        "revision": "the revision of the model",
        "model_digest": "the model's files",
    }
    differ = [text for name, text in names.items() if getattr(mine, name) != getattr(theirs, name)]
    known = [name for name in sorted(mine.options) if None not in (mine.options[name], theirs.options.get(name))]
    changed = [name for name in known if mine.options[name] != theirs.options[name]]
    return differ + [f"{name} ({theirs.options[name]} then, {mine.options[name]} now)" for name in changed]


def encode_header(header: JobHeader) -> bytes:
    """Return the header as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(header), indent=2) + b"\n"


def decode_header(content: bytes) -> JobHeader:
    """Return the header. Raises one of `UNDECODABLE` or ValueError if the content is none."""
    return msgspec.json.decode(content, type=JobHeader)


def header_path(results: Path) -> Path:
    """Return the path of the header of a file of results: its name with `.job` appended."""
    return results.with_name(f"{results.name}.job")
