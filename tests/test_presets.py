"""The presets hold the lists of the documents, and what CLIP is asked with them reads well."""

import json

import pytest

import main
from clip_utilities import tokenize
from config_utilities import PROGRAM_DIR, available_presets, read_config, read_settings
from conftest import save_photo
from errors import ConfigError
from prompt_utilities import get_prompts

# The least that each holds: items, prefixes, postfixes. As the documents have it, with or without spaces at the joints.
SHOES = ["a ", "a pair of ", "a shoe in ", "a sneaker that is "], [" shoe", " sneaker", " boot", " footwear"]
DEVICES = (
    ["a ", "a device in ", "a phone that is ", "a laptop finished in "],
    [" device", " phone", " laptop", " product"],
)
LISTS = {
    "apparel": (
        ["navy", "beige", "olive", "burgundy", "charcoal", "cream", "khaki", "teal"],
        ["a ", "a shirt in ", "a t-shirt that is ", "a garment colored in "],
        [" shirt", " t-shirt", " top", " garment"],
    ),
    "footwear-colour": (["black", "white", "brown", "tan", "navy", "gray"], *SHOES),
    "footwear-use": (["sports ", "runner's", "olympics", "casual"], *SHOES),
    "furniture": (
        ["black", "white", "walnut", "oak", "mahogany", "gray"],
        ["a ", "a chair in ", "a sofa that is ", "a table finished in "],
        [" chair", " sofa", " table", " furniture piece"],
    ),
    "electronics-finish": (["black", "silver", "space gray", "rose gold", "midnight", "starlight"], *DEVICES),
    "electronics-brand": (["iPhone", "Samsung", "Motorola", "Xiaomi"], *DEVICES),
    "produce": (
        ["red", "green", "yellow", "golden", "purple", "orange"],
        ["a ", "a ripe ", "a fresh ", "a photo of a "],
        [" apple", " banana", " mango", " grape"],
    ),
}


def test_the_presets_are_those_of_the_documents():
    assert set(available_presets()) == {"vehicles", *LISTS}


@pytest.mark.parametrize("name", LISTS)
def test_a_preset_holds_the_documents_lists(name):
    values = read_config(available_presets()[name])
    items, prefixes, postfixes = LISTS[name]
    for key, words in (("items", items), ("prefixes", prefixes), ("postfixes", postfixes)):
        assert {word.strip() for word in words} <= set(values[key])
    joined = get_prompts(prefixes, items, postfixes)
    assert set(joined) <= set(get_prompts(values["prefixes"], values["items"], values["postfixes"]))


def test_vehicles_is_the_default_config():
    assert available_presets()["vehicles"].read_bytes() == (PROGRAM_DIR / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["vehicles", *LISTS])
def test_clip_can_read_every_prompt_of_a_preset(name):
    settings = read_settings({"preset": name})
    prompts = get_prompts(settings.prefixes, settings.items, settings.postfixes)
    assert tokenize(prompts).shape[0] == len(settings.prefixes) * len(settings.items) * len(settings.postfixes)
    assert not any("  " in prompt for prompt in prompts)


@pytest.mark.parametrize("name", ["vehicles", *LISTS])
def test_the_default_detector_knows_the_labels_of_a_preset(name):
    import torchvision

    known = torchvision.models.get_model_weights(read_settings({}).detector).DEFAULT.meta["categories"]
    assert set(read_settings({"preset": name}).focus_labels or ()) <= set(known)


def test_an_unknown_preset_and_two_configs_are_refused():
    with pytest.raises(ConfigError, match=r"--preset aparel: no such preset; did you mean apparel\?"):
        read_settings({"preset": "aparel"})
    with pytest.raises(ConfigError, match="--preset apparel: is a config file of its own"):
        read_settings({"preset": "apparel", "config": "mine.json"})


def test_the_list_of_presets_names_items_and_counts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main.main(["--list-presets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in available_presets())
    assert "972" in out
    assert "rose gold" in out


def test_items_of_several_words_become_folders(tmp_path, sam2_checkpoint, clip_checkpoint):
    save_photo(tmp_path / "photos" / "a.png")
    lists = {"prefixes": ["a phone that is"], "items": ["rose gold"], "postfixes": [""]}
    for items, folder in ((["rose gold"], "rose gold"), (["runner's"], "runner's")):
        (tmp_path / "config.json").write_text(json.dumps({**lists, "items": items}))
        flags = ["--sam-model", str(sam2_checkpoint), "--clip-model", str(clip_checkpoint)]
        flags += ["--config", str(tmp_path / "config.json"), "-i", str(tmp_path / "photos"), "--quiet"]
        assert main.main([*flags, "-o", str(tmp_path / folder)]) == 0
        [row] = map(json.loads, (tmp_path / folder / "metadata.jsonl").read_text().splitlines())
        assert (row["label"], row["file_name"]) == (folder, f"{folder}/a.png")
        assert row["prompt"] == f"a phone that is {folder}"
        assert (tmp_path / folder / folder / "a.png").is_file()
