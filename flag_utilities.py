"""The flags of the command line, and what --help says of them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from config_utilities import CONFIG_ONLY, EXPORTS, ClipView, Compile, Edges, Precision, Settings
from errors import ConfigError
from prompt_utilities import DecisionRule


def parse_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the flags that the command line gives, by the names of `Settings`, and nothing that it does not."""
    parser = build_parser()
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        of_config = {f"--{key.replace('_', '-')}": key for key in CONFIG_ONLY}
        near = difflib.get_close_matches(name, [*parser.option_strings, *of_config], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if near and near[0] in of_config:
            hint = f"{of_config[near[0]]!r} belongs into config.json; "
        if not name.startswith("-"):
            hint = f"for a folder of photos write --dataset-dir {name}; "
        raise ConfigError(f"{name}: no such flag; {hint}see --help")
    return vars(flags)


def build_parser() -> _Parser:
    """Returns the parser; a flag that is not given leaves no trace, so that config.json can speak."""
    parser = _Parser(
        prog="main.py",
        description="Cuts the central subject out of every photo with SAM 2, paints the background white, lets CLIP "
        "choose among the prompts of config.json, and writes the cut-outs to OUTPUT/<item>/.",
        epilog="Exit code: 0 every photo written; 1 finished, but some photos failed or there were none; 2 could not "
        "start, or not go on; 130 interrupted. The same command goes on where the last one stopped.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    default = Settings

    flag = parser.add_argument_group("photos in, cut-outs out").add_argument
    what = (
        "folder of photos, or a URL such as s3://bucket/photos, read with its subfolders: JPEG, PNG, WebP, TIFF, AVIF, "
    )
    what += "HEIC and others"
    flag("--dataset-dir", "-i", metavar="DIR", help=f"{what} (default: {default.dataset_dir})")
    what = "where the <item>/ folders go, a folder or a URL"
    flag("--output", "--output-dir", "-o", metavar="DIR", help=f"{what} (default: {default.output})")
    what = "prefixes, items and postfixes of the prompts, and any flag's value under its long name with underscores"
    where = f"./{default.config}, else the one that comes with the program"
    flag("--config", metavar="FILE", help=f"{what}; flags override it (default: {where})")
    flag("--preset", metavar="NAME", help="in place of --config, lists for another kind of things; see --list-presets")
    flag("--list-presets", action="store_true", help="show the presets with their items, and do nothing")
    what = "white, transparent or #rrggbb; CLIP always sees the subject on white"
    flag("--background", metavar="COLOUR", help=f"{what} (default: {default.background})")
    flag("--no-sam", "-x", action="store_true", help="classify the whole photo and write it uncut")
    flag("--limit", type=int, metavar="N", help="only the first N photos")
    what = "photos of more pixels are failures, before they are decoded: a small file may ask for all memory"
    flag("--max-pixels", type=int, metavar="N", help=f"{what} (default: {default.max_pixels})")
    flag("--overwrite", action="store_true", help="delete what the last run wrote, and start over")
    flag("--dry-run", action="store_true", help="show what would be done, and do nothing")

    what = "the sample photos with the bundled micro models, to see what this is about"
    flag("--demo", action="store_true", help=what)

    flag = parser.add_argument_group("models and decisions").add_argument
    what = "the two small models that come with the program: no download, for trying out, tests and plumbing"
    flag("--micro", action="store_true", help=what)
    what = "sam2.1_hiera_tiny, _small, _base_plus or _large, another name under checkpoints/, or a path to a .pt"
    flag("--sam-model", "-s", metavar="MODEL", help=f"{what} (default: {default.sam_model})")
    what = "architecture of a .pt whose name does not tell it, such as sam2.1_hiera_l"
    flag("--sam-config", "-c", metavar="CONFIG", help=f"{what} (default: derived from the model's name)")
    what = "a name of clip.available_models(), another under checkpoints/, or a path to a .pt"
    flag("--clip-model", "-m", metavar="MODEL", help=f"{what} (default: {default.clip_model})")
    what = "how far the two supporting points of pass 2 lie from the centre, as a fraction of the shorter side"
    flag("--margin", "--mask-threshold", type=float, metavar="M", help=f"{what} (default: {default.margin})")
    what = "top-prompt: the item of the best prompt; item-sum: probabilities summed per item; ensemble: mean text "
    what += f"feature per item (default: {default.decision})"
    flag("--decision", choices=get_args(DecisionRule), help=what)

    _add_focus_flags(parser)
    _add_mask_flags(parser)
    _add_review_flags(parser)
    _add_export_flags(parser)
    _add_machine_flags(parser)

    flag = parser.add_argument_group("what is shown").add_argument
    what = "a line per photo, and an inspection picture in <output>-debug/: mask, points, cut-out, top items"
    flag("--debug", "-d", action="store_true", help=what)
    flag("--verbose", "-v", action="store_true", help="a line per photo and per skipped file")
    flag("--quiet", action="store_true", help="errors only")
    flag("--log", metavar="FILE", help="append the command and all that it says to a plain-text log")
    return parser


def _add_focus_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("focus: where SAM 2 is pointed").add_argument
    what = "center; X,Y as fractions of width and height, such as 0.4,0.6; FILE.csv with file_name,x,y and perhaps "
    what += (
        "x0,y0,x1,y1 of each photo, in pixels or fractions; grid: nine points are tried, the one with the best mask "
    )
    what += f"wins; detector: an object detector finds the subject (default: {default.focus})"
    flag("--focus", metavar="FOCUS", help=what)
    what = (
        "of --focus detector: a model of torchvision.models.detection, downloaded on first use, or yolo:FILE.pt with "
    )
    flag("--detector", metavar="MODEL", help=f"{what}ultralytics installed (default: {default.detector})")
    what = "what the detector may find, such as car,truck (default: focus_labels of the config, else anything)"
    flag("--focus-labels", type=_words, metavar="LABELS", help=what)
    what = f"confidence from which a detection counts (default: {default.focus_threshold:g})"
    flag("--focus-threshold", type=float, metavar="P", help=what)
    what = "set photos aside that the detector finds nothing in, or the .csv leaves out, instead of taking the centre"
    flag("--require-focus", action="store_true", help=what)
    flag("--verify-focus", action="store_true", help="the detector must find the subject in the cut-out, too")
    flag("--keep-unknown", action="store_true", help="copy the photos that are set aside to <output>-unknown/")


def _add_mask_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("masks and cut-outs").add_argument
    what = "let GrabCut move the outlines to the photo's own edges (default: on with --micro, else off)"
    flag("--refine", action=argparse.BooleanOptionalAction, help=what)
    what = "fill holes and drop islands of at most this fraction of the subject (without a number: 0.02)"
    flag("--clean-mask", type=float, nargs="?", const=0.02, metavar="F", help=f"{what} (default: off)")
    what = "soft: the outline fades as SAM 2 is unsure of it, blended or in the alpha channel"
    flag("--edges", choices=get_args(Edges), help=f"{what} (default: {default.edges})")
    flag("--feather", type=float, metavar="PX", help="soften the outline by so many pixels (default: 0)")
    flag("--crop", action="store_true", help="write only the part of the photo around the subject")
    what = f"around it with --crop, as a fraction of its longer side (default: {default.padding:g})"
    flag("--padding", type=float, metavar="F", help=what)
    flag("--square", action="store_true", help="with --crop, a square, filled up with the background")
    what = "what CLIP sees: the whole photo's central square, or the subject's box as a square"
    flag("--clip-view", choices=get_args(ClipView), help=f"{what} (default: {default.clip_view})")
    what = "flag masks below this fraction of the photo as small"
    flag("--min-area", type=float, metavar="F", help=f"{what} (default: {default.min_area:g})")
    what = "flag masks above it as large"
    flag("--max-area", type=float, metavar="F", help=f"{what} (default: {default.max_area:g})")
    what = "set flagged masks aside: small, large, or at all four borders; with --check, review disputed labels"
    flag("--strict", action="store_true", help=what)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _add_review_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("doubt: what goes to <output>-review/ instead").add_argument
    what = "photos whose item_probability is below"
    flag("--min-probability", type=float, metavar="P", help=f"{what} (default: {default.min_probability:g})")
    what = "photos whose lead over the runner-up is below; a negative one means that the best prompt and the most "
    what += "probable item differ"
    flag("--min-margin", type=float, metavar="M", help=f"{what} (default: {default.min_margin:g})")
    what = "photos whose mask SAM 2 itself thinks less of"
    flag("--min-mask-score", type=float, metavar="S", help=f"{what} (default: {default.min_mask_score:g})")
    what = "flag labels that do not survive another view of the subject, or that its colour contradicts (see colours "
    what += "in config.json)"
    flag("--check", action="store_true", help=what)

    group = parser.add_argument_group("afterwards: with an output that is there, and no new photo")
    flag = group.add_argument
    flag("--report-only", action="store_true", help="build <output>-report/ anew, and what --export asks for")
    what = "take over the corrections that the report's page has saved: photos move to their right item"
    flag("--apply", metavar="CSV", help=what)
    flag("--undo", action="store_true", help="take back the last --apply, --relabel or --target-precision")
    what = "label every photo anew with the prompts of --config, from the kept image features, in seconds"
    flag("--relabel", action="store_true", help=what)
    what = "how good the labels are, by a .csv with file_name and item, a folder of class folders, or corrections"
    flag("--evaluate", metavar="LABELS", help=what)
    what = "with --evaluate: find the probability from which labels are that precise with 95%% confidence, and send "
    what += "the rest to review"
    flag("--target-precision", type=float, metavar="P", help=what)


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument_group("beside the output").add_argument
    flag("--no-report", action="store_true", help="build no <output>-report/index.html")
    what = f"into <output>-export/, some of {','.join(EXPORTS)}; needs requirements-export.txt"
    flag("--export", type=_words, metavar="FORMATS", help=what)
    flag("--save-masks", action="store_true", help="masks as PNG, into <output>-export/masks/")
    what = "shares of train, validation and test in exports, such as 0.8,0.1,0.1"
    flag("--split", metavar="SHARES", help=what)


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("machine").add_argument
    what = "of SAM 2: cpu, cuda, cuda:1, mps (default: MPS, else CUDA, else CPU)"
    flag("--device", "--force-device", "-f", metavar="DEVICE", help=what)
    flag("--clip-device", metavar="DEVICE", help="of CLIP (default: CUDA, else CPU)")
    what = f"auto is bf16 where the device has it in hardware, else fp32 (default: {default.precision})"
    flag("--precision", choices=get_args(Precision), help=what)
    what = "let torch compile SAM 2's encoder on CUDA first, half a minute that a long run wins back; auto does so then"
    flag("--compile", choices=get_args(Compile), help=f"{what} (default: {default.compile})")
    what = f"photos per model call (default: {default.batch_size}, by the memory of the device)"
    flag("--batch-size", type=_batch_size, metavar="N", help=what)
    what = "do it with Ray: on all CPUs and GPUs of this machine, or of the cluster at an address, such as auto or "
    what += "host:6379; needs requirements-ray.txt"
    flag("--ray", metavar="ADDRESS", nargs="?", const="local", help=what)
    what = "processes that have the models (default: one per GPU, or per machine without); more share the GPUs"
    flag("--ray-actors", type=int, metavar="N", help=what)
    flag("--seed", "-S", type=int, metavar="N", help=f"for numpy and torch (default: {default.seed})")


class _Parser(argparse.ArgumentParser):
    @property
    def option_strings(self) -> list[str]:
        """All flags that there are."""
        return [option for action in self._actions for option in action.option_strings]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number or auto") from None
