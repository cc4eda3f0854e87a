"""The settings of a run: their defaults, config.json, and the checks that both it and the flags pass."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import reprlib
import sys
import types
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

from errors import ConfigError
from prompt_utilities import MOST_PROMPTS, DecisionRule
from record_utilities import Thresholds
from storage_utilities import is_url, to_place

PROGRAM_DIR = Path(__file__).resolve().parent

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
Edges = Literal["hard", "soft"]
ClipView = Literal["full", "crop"]
EXPORTS = ("coco", "yolo", "captions", "imagefolder")

# The models that come with the program; two names like any other.
MICRO_SAM2, MICRO_CLIP = "sam2.1_hiera_micro", "clip_vit_micro"
SAMPLE_PHOTOS = PROGRAM_DIR / "dataset_cars"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run can be told. The defaults of the whole program stand here and nowhere else."""

    dataset_dir: str = "dataset_cars"
    output: str = "output"
    config: str = "config.json"
    preset: str | None = None
    list_presets: bool = False
    sam_model: str = "sam2.1_hiera_large"
    sam_config: str | None = None
    clip_model: str = "ViT-L/14@336px"
    micro: bool = False
    demo: bool = False
    no_sam: bool = False
    focus: str = "center"
    margin: float = 0.05
    detector: str = "ssdlite320_mobilenet_v3_large"
    focus_labels: tuple[str, ...] | None = None
    focus_threshold: float = 0.4
    require_focus: bool = False
    keep_unknown: bool = False
    verify_focus: bool = False
    refine: bool = False
    clean_mask: float = 0.0
    edges: Edges = "hard"
    feather: float = 0.0
    min_area: float = 0.005
    max_area: float = 0.95
    strict: bool = False
    min_probability: float = 0.0
    min_margin: float = -1.0
    min_mask_score: float = 0.0
    check: bool = False
    background: str = "white"
    crop: bool = False
    padding: float = 0.05
    square: bool = False
    clip_view: ClipView = "full"
    decision: DecisionRule = "top-prompt"
    device: str = "auto"
    clip_device: str = "auto"
    precision: Precision = "auto"
    compile: Compile = "auto"
    batch_size: int | Literal["auto"] = "auto"
    seed: int = 3
    ray: str | None = None
    ray_actors: int | None = None
    no_report: bool = False
    export: tuple[str, ...] = ()
    save_masks: bool = False
    split: str | None = None
    report_only: bool = False
    apply: str | None = None
    undo: bool = False
    relabel: bool = False
    evaluate: str | None = None
    target_precision: float | None = None
    overwrite: bool = False
    limit: int | None = None
    max_pixels: int = 200_000_000
    dry_run: bool = False
    debug: bool = False
    verbose: bool = False
    quiet: bool = False
    log: str | None = None
    prefixes: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    postfixes: tuple[str, ...] = ()
    colours: dict[str, str] = field(default_factory=dict)
    csv_prefixes: tuple[str, ...] = ("",)
    csv_postfixes: tuple[str, ...] = ("",)
    given: dict[str, str] = field(default_factory=dict)  # which of them were set, and by what: "config" or "flag"

    @property
    def revises(self) -> bool:
        """Whether this run is about an output that is there, and does no new photo."""
        return bool(self.report_only or self.apply or self.undo or self.relabel or self.evaluate)

    @property
    def finds_subjects(self) -> bool:
        """Whether a detector is asked for."""
        return self.focus == "detector" or self.verify_focus

    @property
    def exports(self) -> tuple[str, ...]:
        """The formats that are written beside the output."""
        return tuple(dict.fromkeys((*self.export, *(["masks"] if self.save_masks else []))))

    @property
    def thresholds(self) -> Thresholds:
        """What is too doubtful for its item's folder."""
        return Thresholds(self.min_probability, self.min_margin, self.min_mask_score, self.strict)


PROMPT_KEYS = ("prefixes", "items", "postfixes")
CAPTION_KEYS = ("csv_prefixes", "csv_postfixes")  # what exported captions have around the prompt
ALIASES = {"output_dir": "output", "mask_threshold": "margin", "force_device": "device"}
# What a config file can't say of itself. One of a stranger is not to append a log to the files of its user either.
_OF_FLAGS = (
    *("config", "preset", "list_presets", "log", "given"),
    *("report_only", "apply", "undo", "relabel", "evaluate", "target_precision"),
    *("overwrite", "dry_run"),
)
# What nothing comes of where photos are not cut out. In a config file it may stand: for runs that do.
_OF_CUT_OUTS = (
    *("background", "refine", "clean_mask", "edges", "feather", "crop", "clip_view"),
    *("min_area", "max_area", "strict", "save_masks"),
)
# What has no flag.
WORD_LISTS = (*PROMPT_KEYS, *CAPTION_KEYS)
CONFIG_ONLY = (*WORD_LISTS, "colours")
_HINTS = get_type_hints(Settings)
_CONFIG_KEYS = [field.name for field in fields(Settings) if field.name not in _OF_FLAGS]

_FILE = "file://"
_LARGEST_CONFIG = 16 << 20  # bytes
_LONGEST_WORD, _LONGEST_SETTING = 1000, 4096  # characters; the latter is also what paths have at most on Linux


def read_settings(flags: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run: the defaults, overridden by config.json, overridden by the flags.

    Args:
        flags: What the command line gave, by the names of `Settings`; nothing that it did not give.

    Raises:
        ConfigError: A value can't be used; names the flag, or the file and key, and the remedy.
    """
    for name, value in flags.items():
        problem = _problem(name, value)
        if problem:
            text = ",".join(value) if isinstance(value, tuple) else value
            raise ConfigError(f"--{name.replace('_', '-')} {_quote(text)}: {problem}")
    preset = flags.get("preset")
    if preset is not None and "config" in flags:
        raise ConfigError(f"--preset {preset}: is a config file of its own; leave out --config, or --preset")
    path = find_config(flags.get("config")) if preset is None else find_preset(preset)
    try:
        config = read_config(path)
    except ConfigError as error:
        if preset is not None or "config" in flags or path.parent == PROGRAM_DIR:
            raise
        raise ConfigError(f"{error} (it is read because it lies in this folder; name another with --config)") from None
    values = {**_expand(config), **_expand(flags), "config": str(path)}
    given = dict.fromkeys(_expand(config), "config") | dict.fromkeys(_expand(flags), "flag")
    settings = Settings(**values, given=given)
    for name, flag in (("dataset_dir", "--dataset-dir"), ("output", "--output")):
        settings = replace(settings, **{name: _plain(getattr(settings, name), flag=flag)})
    _check_together(settings, flags)
    _check_afterwards(settings, flags)
    _check_ray(settings)
    if is_url(settings.output) and (settings.revises or settings.exports):
        to_place(settings.output, flag="--output")  # refuses what had better not be repeated
        raise ConfigError(
            f"--output {settings.output}: exports, and what is done with an output that is there, need it on a disk; "
            "copy it to one first"
        )
    return settings


def _plain(place: str, *, flag: str) -> str:
    """Returns the path of a `file://` URL; all else as it is."""
    if not place.lower().startswith(_FILE):
        return place
    host, slash, path = place[len(_FILE) :].partition("/")
    if host.lower() not in ("", "localhost"):
        raise ConfigError(f"{flag} {place}: {host} would be another machine; write file:///FOLDER, or a path")
    if not slash:
        raise ConfigError(f"{flag} {place}: names no folder; write file:///FOLDER, or a path")
    path = f"/{path}"  # on Windows that of file:///C:/photos is C:\photos; elsewhere names need not be UTF-8
    plain = url2pathname(path) if os.name == "nt" else os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if "\0" in plain:
        raise ConfigError(f"{flag} {place}: must not hold NUL; leave out %00")
    return plain


def _check_together(settings: Settings, flags: Mapping[str, Any]) -> None:
    if settings.min_area > settings.max_area:
        raise ConfigError(f"--min-area {settings.min_area:g}: is above --max-area {settings.max_area:g}; lower it")
    if settings.no_sam and settings.min_mask_score > 0:
        raise ConfigError(f"--min-mask-score {settings.min_mask_score:g}: SAM 2 is off; leave out --no-sam")
    if settings.no_sam and settings.check:
        raise ConfigError("--check: its views are of the cut-out, and SAM 2 is off; leave out --no-sam")

    def asks_for(name: str) -> bool:
        return flags.get(name, getattr(Settings, name)) != getattr(Settings, name)

    for name in ("padding", "square"):
        if asks_for(name) and not settings.crop:
            raise ConfigError(f"--{name}: nothing is cropped; add --crop")
    for name in _OF_CUT_OUTS if settings.no_sam else ():
        if asks_for(name):
            raise ConfigError(f"--{name.replace('_', '-')}: photos stay uncut, as SAM 2 is off; leave out --no-sam")
    if flags.get("split") is not None and not settings.exports:
        raise ConfigError(f"--split {settings.split}: of what? add --export, or --save-masks")


def _check_afterwards(settings: Settings, flags: Mapping[str, Any]) -> None:
    if settings.target_precision is not None and settings.evaluate is None:
        raise ConfigError(
            f"--target-precision {settings.target_precision:g}: by which labels? add --evaluate with a file of them"
        )
    if settings.relabel and not flags.keys() & {"config", "preset"}:
        raise ConfigError("--relabel: with which prompts? add --config FILE, or --preset NAME")
    if settings.apply and settings.undo:
        raise ConfigError(f"--apply {settings.apply}: together with --undo nothing would come of it; leave out one")
    for flag, given in (("--overwrite", settings.overwrite), ("--dry-run", settings.dry_run)):
        if settings.revises and given:
            raise ConfigError(f"{flag}: is for a run over photos, not for what is done with its output; leave it out")


def _check_ray(settings: Settings) -> None:
    if settings.ray_actors is not None and settings.ray is None:
        raise ConfigError(f"--ray-actors {settings.ray_actors}: without Ray there are none; add --ray")
    if settings.ray is not None:
        for flag, value in (("--device", settings.device), ("--clip-device", settings.clip_device)):
            if value not in ("auto", "cpu", "cuda"):
                raise ConfigError(
                    f"{flag} {value}: with --ray it is Ray that hands out the GPUs; use cuda, cpu or auto"
                )


def _expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with what `demo` and `micro` are short for, where the same place does not say otherwise."""
    expanded = dict(values)
    if expanded.get("demo"):
        expanded = {"micro": True, "dataset_dir": str(SAMPLE_PHOTOS), **expanded}
    if expanded.get("micro"):
        expanded = {"sam_model": MICRO_SAM2, "clip_model": MICRO_CLIP, "refine": True, **expanded}
    return expanded


def find_config(named: str | None) -> Path:
    """Returns the config file: the named one, else ./config.json, else the one that comes with the program."""
    if named is not None:
        return Path(named)
    here = Path(Settings.config)
    return here if here.exists() else PROGRAM_DIR / Settings.config


def available_presets() -> dict[str, Path]:
    """Returns the config files that come with the program, by name."""
    return {path.stem: path for path in sorted((PROGRAM_DIR / "presets").glob("*.json"))}


def find_preset(name: str) -> Path:
    """Returns the config file of a preset.

    Raises:
        ConfigError: There is none of that name.
    """
    presets = available_presets()
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(presets)}"
        raise ConfigError(f"--preset {name}: no such preset; {hint}")
    return presets[name]


def read_config(path: Path) -> dict[str, Any]:
    """Returns the checked contents of a config file, by the names of `Settings`.

    Raises:
        ConfigError: The file is missing, is no JSON, or has an unknown key or an unusable value.
    """
    raw = _read_json(path)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = ALIASES.get(key, key)
        if name in _OF_FLAGS:
            raise ConfigError(f"{path}: {key!r}: belongs on the command line, as --{name.replace('_', '-')}")
        if name not in _CONFIG_KEYS:
            near = difflib.get_close_matches(key[:60], [*_CONFIG_KEYS, *ALIASES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_CONFIG_KEYS)}"
            raise ConfigError(f"{path}: {_quote(key)}: unknown key; {hint}")
        if name in values:
            raise ConfigError(f"{path}: {key!r}: is another name for {name!r}, which is set, too; keep one of them")
        values[name] = _read_value(path, key, name, value)
    for key in PROMPT_KEYS:
        if key not in values:
            raise ConfigError(f'{path}: {key!r} is missing; add a list of strings, such as "{key}": ["a photo of a"]')
    _check_lists(path, [values[key] for key in PROMPT_KEYS])
    return values


def _read_value(path: Path, key: str, name: str, value: Any) -> Any:
    if name in WORD_LISTS or (name == "focus_labels" and value is not None):
        return _read_words(path, name, value)
    if name == "colours":
        return _read_colours(path, value)
    problem = _problem(name, value)
    if problem:
        raise ConfigError(f"{path}: {key!r}: {_shorten(value)}: {problem}")
    if name == "detector" and value.startswith("yolo:"):  # ultralytics runs what code the file holds
        raise ConfigError(f"{path}: {key!r}: {_shorten(value)}: belongs on the command line, as --detector")
    return value


def _check_lists(path: Path, lists: Sequence[Sequence[str]]) -> None:
    """Checks the prefixes, items and postfixes of a config file together, before their product is made."""
    for item in lists[1]:
        problem = folder_problem(item)
        if problem:
            raise ConfigError(f"{path}: 'items': {_quote(item)} can't be the name of a folder: {problem}")
    lengths = [len(each) for each in lists]
    if math.prod(lengths) > MOST_PROMPTS:
        raise ConfigError(
            f"{path}: {lengths[0]:,} prefixes x {lengths[1]:,} items x {lengths[2]:,} postfixes make "
            f"{math.prod(lengths):,} prompts, more than {MOST_PROMPTS:,}; shorten the lists"
        )


def _read_json(path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: {_quote(key)} stands twice; keep one of them")
            seen[key] = value
        return seen

    try:
        raw = json.loads(_read_text(path), object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}, column {error.colno}: no JSON: {error.msg}") from None
    except ValueError:
        raise ConfigError(f"{path}: no usable JSON: a number of thousands of digits; shorten it") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; it holds settings and three lists of strings") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {_json_type(raw)}; it must be an object: {{...}}")
    return raw


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_CONFIG + 1)
        if len(content) > _LARGEST_CONFIG:
            raise ConfigError(f"{path}: is larger than {_LARGEST_CONFIG >> 20} MB; name your file with --config")
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; name your file with --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is no UTF-8; save the file as UTF-8") from None


def _read_words(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """Returns a list of prompt parts with single spaces, checked for type, emptiness and repetition."""
    if not isinstance(value, list):
        raise ConfigError(f"{path}: {key!r}: {_shorten(value)}: must be a list of strings, not {_json_type(value)}")
    if not value:
        remedy = "name at least one" if key in ("items", "focus_labels") else 'use [""] for none'
        raise ConfigError(f"{path}: {key!r}: the list is empty; {remedy}")
    if len(value) > MOST_PROMPTS:
        raise ConfigError(f"{path}: {key!r}: a list of {len(value):,}; shorten it to {MOST_PROMPTS:,} at most")
    words: dict[str, str] = {}
    for word in value:
        if not isinstance(word, str):
            raise ConfigError(f"{path}: {key!r}: {_shorten(word)}: must be a string, not {_json_type(word)}")
        if len(word) > _LONGEST_WORD:
            raise ConfigError(
                f"{path}: {key!r}: {_quote(word)}: has {len(word):,} of {_LONGEST_WORD:,} characters at most"
            )
        if any(0xD800 <= ord(character) <= 0xDFFF for character in word):
            raise ConfigError(
                f"{path}: {key!r}: {_quote(word)}: holds half a surrogate pair; write the character itself"
            )
        plain = unicodedata.normalize("NFC", " ".join(word.split()))
        # Two items that differ only in case would share one folder on macOS and Windows.
        same = plain.casefold() if key == "items" else plain
        if same in words:
            raise ConfigError(f"{path}: {key!r}: {_quote(word)} is the same as {_quote(words[same])}; keep one of them")
        words[same] = plain
    return tuple(words.values())


def _read_colours(path: Path, value: Any) -> dict[str, str]:
    """Returns the colours of items, "#rrggbb" by item."""
    if not isinstance(value, dict):
        raise ConfigError(f'{path}: \'colours\': {_shorten(value)}: must be an object, such as {{"red": "#c81e1e"}}')
    for item, colour in value.items():
        if not isinstance(colour, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise ConfigError(
                f"{path}: 'colours': {_quote(item)}: {_shorten(colour)}: must be a colour such as \"#c81e1e\""
            )
    return {unicodedata.normalize("NFC", " ".join(item.split())): colour for item, colour in value.items()}


_RESERVED = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"),  # and 1 to 3 in superscript
}
_OWN_FILES = {"metadata.jsonl", "failures.jsonl", "readme.md"}


def folder_problem(item: str) -> str | None:
    """Says why an item can't be a folder on Linux, macOS or Windows; None where it can."""
    bad = sorted({character for character in item if character in '/\\<>:"|?*' or not character.isprintable()})
    problems = {
        "it is empty": not item,
        f"it holds {', '.join(map(repr, bad))}": bool(bad),
        "it begins with a dot, which hides it": item.startswith("."),
        "it ends in a dot, which Windows drops": item.endswith("."),
        "Windows reserves that name": item.split(".", 1)[0].strip().casefold() in _RESERVED,
        "the output has a file of that name": item.casefold() in _OWN_FILES,
        "it is longer than 200 bytes": len(item.encode()) > 200,
    }
    return next((problem for problem, holds in problems.items() if holds), None)


def _problem(name: str, value: Any) -> str | None:
    """Says what is wrong with the value of a setting; None where nothing is."""
    hint = _HINTS[name]
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union, Literal) else (hint,)
    if not any(_fits(value, option) for option in options):
        return f"must be {' or '.join(_describe(option) for option in options if option is not type(None))}"
    if isinstance(value, str) and (not value or "\0" in value):
        return "must not be empty or hold NUL"
    if isinstance(value, str) and len(value) > _LONGEST_SETTING:
        return f"must have at most {_LONGEST_SETTING:,} characters"
    if isinstance(value, str) and not _is_encodable(value):
        return "holds half a surrogate pair; write the character itself"
    limits = {
        "margin": lambda: 0 <= value < 0.5,
        "batch_size": lambda: value == "auto" or 1 <= value <= 1024,
        "limit": lambda: value is None or value >= 1,
        "ray_actors": lambda: value is None or value >= 1,
        "max_pixels": lambda: 1 <= value <= 2_000_000_000,
        "seed": lambda: 0 <= value < 2**32,
        "background": lambda: re.fullmatch(r"white|transparent|#[0-9a-fA-F]{6}", value),
        "focus_labels": lambda: value is None or (value and all(label.strip() for label in value)),
        "feather": lambda: 0 <= value <= 100,
        "padding": lambda: 0 <= value <= 1,
        "min_margin": lambda: -1 <= value <= 1,
        "target_precision": lambda: value is None or 0.5 <= value < 1,
        "export": lambda: set(value) <= set(EXPORTS),
        **dict.fromkeys(_FRACTIONS, lambda: 0 <= value <= 1),
    }
    if name in limits and not limits[name]():
        return _LIMITS[name]
    return None


def _is_encodable(text: str) -> bool:
    """Whether a text can name a file; those of flags may hold the bytes of names in another encoding."""
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


_FRACTIONS = ("focus_threshold", "clean_mask", "min_area", "max_area", "min_probability", "min_mask_score")

_LIMITS = {
    "focus_labels": "must name at least one label, such as car,truck",
    "feather": "must lie between 0 and 100 pixels",
    "padding": "must lie between 0 and 1: a fraction of the longer side of the subject's box",
    **dict.fromkeys(_FRACTIONS, "must lie between 0 and 1"),
    "min_margin": "must lie between -1 and 1: a difference of probabilities",
    "target_precision": "must be at least 0.5 and below 1, such as 0.99",
    "export": f"must be some of {', '.join(EXPORTS)}, with commas between them",
    "margin": "must be at least 0 and below 0.5: a fraction of the photo's shorter side",
    "batch_size": "must be at least 1 and at most 1024, or auto",
    "limit": "must be at least 1",
    "ray_actors": "must be at least 1",
    "max_pixels": "must lie between 1 and 2000000000",
    "seed": "must lie between 0 and 4294967295, the range of numpy's seeds",
    "background": "must be white, transparent or a colour such as #c0c0c0",
}


def _fits(value: Any, option: Any) -> bool:
    """Whether a value is of a type, or one of the values of a Literal; true is no number."""
    if get_origin(option) is Literal:
        return any(_fits(value, each) for each in get_args(option))
    if get_origin(option) is tuple:
        return isinstance(value, (tuple, list)) and all(type(each) is str for each in value)
    if not isinstance(option, type):
        return type(value) is type(option) and value == option
    if option is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # finite, and no NaN
    return type(value) is option


def _describe(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(repr, get_args(option)))
    if get_origin(option) is tuple:
        return "a list of strings"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names.get(option, repr(option))


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


_SHOWN = 60  # characters of a value in a message


def _shorten(value: Any) -> str:
    """Returns a value as JSON has it, or its beginning; of lists and objects about the first that they hold."""
    if isinstance(value, (list, dict)):
        return reprlib.repr(value)
    text = json.dumps(value[:_SHOWN] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _quote(value: Any) -> str:
    """Returns a value as Python has it, which escapes what does not print, or its beginning."""
    text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
