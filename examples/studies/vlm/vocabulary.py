"""The word tokenizer of the small vision-language models: a token a word, a token an object's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..scenes.classes import object_classes
from ..scenes.layout import training_scene
from ..scenes.questions import PRESENCE_FORMS, description_question, presence_sentence, random_question

IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, IMAGE, "<|video_pad|>", START, END, "<|video_start|>", "<|video_end|>")
IMAGE_ID, START_ID, END_ID, EOS_ID = (SPECIAL.index(word) for word in (IMAGE, START, END, EOS))
_SAMPLES = 400
_CHAT = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{{ ' ' + message.content + '</s>' }}"
    "{%- elif message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- endfor -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}"
)


def word_pattern() -> str:
    """Return the regular expression of a token: an object's name, a word, a mark, a line end; a blank leads a word."""
    names = "|".join(each.name for each in object_classes())
    return rf" ?(?:{names})|\r?\n| ?\w+| ?[^\w\s]"


@lru_cache(maxsize=1)
def known_words() -> tuple[str, ...]:
    """Return every token that the questions and their answers use, sorted."""
    words: set[str] = set()
    pattern = re.compile(word_pattern())
    for text in _texts():
        words.update(pattern.findall(text))
    return tuple(sorted(words))


def _texts() -> Iterator[str]:
    generator = np.random.default_rng(5)
    for each in object_classes():
        yield from (each.name, f" {each.name}", f" {each.colour}", f" {each.shape}")
        for present in (True, False):
            yield " " + presence_sentence(each.name, present)
    for form in PRESENCE_FORMS:
        yield from (form.format("a"), form.format("an"))
    for _ in range(_SAMPLES):
        scene = training_scene(generator)
        for question in (random_question(scene, generator), description_question(scene)):
            yield from (question.prompt, f" {question.answer}")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; unknown words become one token, and decoding joins the tokens as they are."""
    words = [*SPECIAL, UNKNOWN, *known_words()]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(word_pattern()), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (*SPECIAL, UNKNOWN)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
        extra_special_tokens={
            "image_token": IMAGE,
            "image_start_token": START,
            "image_end_token": END,
            "video_token": "<|video_pad|>",
            "video_start_token": "<|video_start|>",
            "video_end_token": "<|video_end|>",
        },
    )
