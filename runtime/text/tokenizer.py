"""The tokenizer of a model folder, with the tokens that other files add to tokenizer.json, by `tokenizers` alone.

Files and precedence are those of transformers' `from_pretrained` (version 5): what tokenizer_config.json lists as
`added_tokens_decoder` counts alone; only without it special_tokens_map.json and added_tokens.json are read. The library
gives ids to new tokens in the order in which they are added, so that order is transformers' too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ExpertFlowError, UsageError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

CONFIG, ADDED, SPECIAL, SERIALISED = (
    "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json",
)  # fmt: skip
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = "extra_special_tokens"
_REMEDY = "Download the tokenizer's files again, or pass prompts as lists of ids"
_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load tokenizer.json with all added tokens, without the truncation and padding of its training.

    Raises UsageError for a file that cannot be read.
    """
    tokenizer = _from_file(folder / SERIALISED)
    with _refusing(folder):
        _add_tokens(tokenizer, folder)
    tokenizer.no_truncation()  # a file may carry settings of its training; a shortened prompt would be a wrong answer
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def refusing_library(file: Path, what: str) -> Iterator[None]:
    """Turn errors of the library `tokenizers` into a UsageError about the file.

    It raises bare Exceptions, and for some contents of the file it panics, which is no Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, ExpertFlowError):
        raise
    except BaseException as error:  # noqa: BLE001 - see above
        raise UsageError(f"{what}: {error}", str(file), "Pass prompts as lists of ids") from error


def named_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that have names (`bos_token` and so on), as a chat template gets them.

    Raises UsageError for files that cannot be read.
    """
    settings = read_settings(folder)
    with _refusing(folder):
        _merge_special_map(settings, folder)
        return {name: str(token) for name, token in _special_tokens(settings, {}).items()}


def read_settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with added tokens as objects; empty if there is none.

    Raises UsageError if it cannot be read.
    """
    stated = _read_json(folder / CONFIG)
    with _refusing(folder):
        settings = {name: _revive(value) for name, value in stated.items()}
    if "additional_special_tokens" in settings and not settings.get(_EXTRA):
        settings[_EXTRA] = settings.pop("additional_special_tokens")
    return settings


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn the errors that files of unexpected content cause into a UsageError."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        what = f"cannot read the tokens that {CONFIG}, {SPECIAL} or {ADDED} add: {error}"
        raise UsageError(what, str(folder), _REMEDY) from error


def _from_file(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with refusing_library(file, "cannot read the tokenizer"):
        return Tokenizer.from_file(str(file))


def _add_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    settings = read_settings(folder)
    own = tokenizer.get_added_tokens_decoder()
    listed = _listed_tokens(settings, folder, own)
    by_text = {str(token): token for token in listed.values()}
    named, extra = _special_tokens(settings, by_text), settings.get(_EXTRA) or []
    present = {repr(token) for token in own.values()}
    new: list[Any] = [token for _, token in sorted(listed.items()) if repr(token) not in present]
    texts = {str(token) for token in [*own.values(), *new]}
    for token in [*named.values(), *(extra if isinstance(extra, list) else [])]:
        if str(token) not in texts and token not in new:
            new.append(token)
    specials = {str(token) for token in named.values()}
    if new:
        tokenizer.add_tokens([_as_added(token, specials) for token in new])
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))


def _listed_tokens(settings: dict[str, Any], folder: Path, own: dict[int, AddedToken]) -> dict[int, AddedToken]:
    """Return the added tokens that files list by id. May merge special_tokens_map.json into `settings`."""
    from tokenizers import AddedToken

    stated = settings.get("added_tokens_decoder")
    if stated is not None:
        return {int(number): _added(token) for number, token in stated.items()}
    _merge_special_map(settings, folder)
    special = {str(settings[name]) for name in NAMED if settings.get(name)}
    special |= {str(token) for token in settings.get(_EXTRA) or []}
    listed: dict[int, AddedToken] = {}
    for text, number in _read_json(folder / ADDED).items():
        is_special = text in special
        listed[number] = AddedToken(text, rstrip=False, lstrip=False, normalized=not is_special, special=is_special)
    return listed | own


def _merge_special_map(settings: dict[str, Any], folder: Path) -> None:
    """Override `settings` by special_tokens_map.json, unless tokenizer_config.json lists added tokens itself."""
    if "added_tokens_decoder" in settings:
        return
    for name, value in _read_json(folder / SPECIAL).items():
        if isinstance(value, dict) and name != _EXTRA:
            settings[name] = _added(value, special=True)
        elif name == _EXTRA and isinstance(value, list):
            new = [_added(token, special=True) if isinstance(token, dict) else token for token in value]
            settings[name] = list(dict.fromkeys([*(settings.get(_EXTRA) or []), *new]))
        else:
            settings[name] = value


def _special_tokens(settings: dict[str, Any], by_text: dict[str, AddedToken]) -> dict[str, Any]:
    """Return the named tokens: the usual ones in the library's order, then the model's own."""
    from tokenizers import AddedToken

    usual = {name: settings[name] for name in NAMED if settings.get(name) is not None}
    usual = {name: by_text.get(str(token), token) for name, token in usual.items()}
    own = {name: token for name, token in settings.items() if name.endswith("_token") and name not in NAMED}
    extra = settings.get(_EXTRA)
    own |= extra if isinstance(extra, dict) else {}
    # The library adds objects before texts.
    objects = {name: token for name, token in own.items() if isinstance(token, AddedToken)}
    return usual | objects | {name: token for name, token in own.items() if isinstance(token, str)}


def _as_added(token: Any, specials: Iterable[str]) -> AddedToken:
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    if str(token) in specials:
        token.special = True
    return token


def _added(stated: dict[str, Any], **other: bool) -> AddedToken:
    """Make a token of a file's entry, without unknown keys: the library would print about them on stdout."""
    from tokenizers import AddedToken

    fields: dict[str, Any] = {name: value for name, value in (stated | other).items() if name in _FIELDS}
    return AddedToken(**fields)


def _revive(value: Any) -> Any:
    """Replace every dictionary with `__type: AddedToken`, at any depth, by such a token."""
    if isinstance(value, list):
        return [_revive(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("__type") == "AddedToken":
        return _added(value)
    return {name: _revive(item) for name, item in value.items()}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", str(file), _REMEDY) from error
    if not isinstance(content, dict):
        raise UsageError("is not a JSON object", str(file), _REMEDY)
    return content
