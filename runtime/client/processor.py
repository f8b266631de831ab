"""A model's own processor of text and images. Imports transformers, so it is imported for images only.

Videos are left out: their processors need torchvision even where no video is given. Images are prepared with
torchvision if it is there, else with Pillow, as transformers chooses.
"""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError, UsageError
from ...workers.checkpoint.resolve import local_folder

EXTRA = "Install the extra: pip install 'expertflow-runtime[vision]'"
MORE = "Install the torchvision that belongs to your torch: pip install 'expertflow-runtime[torchvision]'"


def check_images_taken(model: str, revision: str = "") -> None:
    """Raise UsageError if this model takes no images, by its configuration alone, as the survey decides it.

    For a hub id the configuration is fetched if it is not cached. Raises CheckpointError if it cannot be read.
    """
    from ...workers.checkpoint.hub import fetch_config
    from ...workers.model.architecture import load_config, takes_images

    if not takes_images(load_config(local_folder(model) or fetch_config(model, revision))):
        raise UsageError("this model takes no images", model, "Leave them out, or use a model of docs/vision.md")


def load_processor(folder: str) -> Any:
    """Load a transformers `ProcessorMixin` without its video part.

    Raises UsageError if the model takes no images or a library is missing, CheckpointError if its files are broken.
    """
    check_images_taken(folder)
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from ...workers.model.configuration import first_line

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        cls: Any = PROCESSOR_MAPPING.get(type(config), None)
        if cls is None or "image_processor" not in cls.get_attributes():
            raise UsageError("this model takes no images", folder, "Leave them out, or use a vision-language model")
        _require_backend(config.model_type)
        return _without_videos(cls).from_pretrained(folder, local_files_only=True)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        what = f"its images need a library that is missing or does not fit ({first_line(error)})"
        raise UsageError(what, folder, MORE) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"transformers cannot load its processor ({first_line(error)})"
        remedy = "Download the model again, its preprocessor_config.json included"
        raise CheckpointError(what, folder, remedy) from error


def _require_backend(model_type: str) -> None:
    """Raise ImportError without torchvision if needed: the library's own error is a paragraph, as for broken files."""
    from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.utils.import_utils import is_torchvision_available

    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    if set(backends) == {"torchvision"} and not is_torchvision_available():
        raise ImportError("torchvision")


def _without_videos(base: type[Any]) -> type[Any]:
    """Return a subclass of the processor that is loaded and checked without its video part."""

    def load_parts(cls: Any, folder: str, processor_dict: Any = None, **options: Any) -> list[Any]:
        from transformers import AutoImageProcessor, AutoTokenizer

        loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
        loaders = {name: loaders[name] for name in base.get_attributes() if "video" not in name}
        options["trust_remote_code"] = False  # else the library prompts on the terminal
        parts = {name: loader.from_pretrained(folder, **options) for name, loader in loaders.items()}
        return [parts.get(name) for name in base.get_attributes()]

    def check_part(self: Any, name: str, part: Any) -> Any:
        return None if part is None else base.check_argument_for_proper_class(self, name, part)

    body = {
        "__module__": base.__module__,
        "_get_arguments_from_pretrained": classmethod(load_parts),
        "check_argument_for_proper_class": check_part,
    }
    return type(base.__name__, (base,), body)
