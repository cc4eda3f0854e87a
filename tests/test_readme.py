"""The README's tables and examples against the program itself."""

import itertools
import json
import re

import flag_utilities
from config_utilities import PROGRAM_DIR, Settings, read_config
from conftest import make_image
from prompt_utilities import Label
from record_utilities import photo_record

README = (PROGRAM_DIR / "README.md").read_text(encoding="utf-8")


def indented_block(beginning):
    """Returns the indented block of the README that begins with a text."""
    first, *rest = README[README.index(beginning) :].splitlines()
    return "\n".join([first, *itertools.takewhile(lambda line: line.startswith("    "), rest)])


def test_the_flag_table_equals_the_parser():
    table = re.findall(r"^\| ((?:`-[^|]+`)+) \| ([^|]+) \|", README, flags=re.MULTILINE)
    in_readme = {tuple(re.findall(r"`([^`]+)`", flags)): default for flags, default in table}
    actions = [action for action in flag_utilities.build_parser()._actions if action.dest != "help"]
    assert set(in_readme) == {tuple(action.option_strings) for action in actions}
    for action in actions:
        default = getattr(Settings, action.dest)
        shown = in_readme[tuple(action.option_strings)]
        if default is False:
            assert shown.endswith("off")
        elif default is not None:
            assert shown == ("none" if default == () else str(default))


def test_the_example_of_a_config_is_a_valid_one(tmp_path):
    (tmp_path / "config.json").write_text(indented_block('{\n      "prefixes"'))
    assert read_config(tmp_path / "config.json")["items"] == ("red", "dark red", "blue")


def test_the_example_of_a_record_has_the_keys_of_a_real_one():
    example = json.loads(indented_block('{"file_name"'))
    real = photo_record(
        Label("red", "a red car", 0.2, 0.8, "maroon", 0.7, ()), None, None, make_image().shape, seconds=0.1
    )
    assert set(example) == {"file_name", "source", *real}


def test_every_file_that_the_readme_shows_is_there():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (PROGRAM_DIR / path).is_file(), path
