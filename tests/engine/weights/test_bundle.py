"""Only whole, unaltered bundles are opened; what is wrong is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medclipsam.engine.errors import BundleError
from medclipsam.engine.weights import bundle as module
from medclipsam.engine.weights.bundle import (
    Bundle,
    find_bundle,
    list_bundles,
    open_bundle,
    sha256_file,
    user_folder,
    write_description,
)
from medclipsam.train.phantoms.bundle import SAM_CONFIG

FILES = [
    "clip/model.safetensors",
    "clip/open_clip_config.json",
    "clip/text_config/config.json",
    "clip/tokenizer.json",
    "sam/model.safetensors",
]


@pytest.fixture
def folder(tiny_bundle_folder, tmp_path):
    return shutil.copytree(tiny_bundle_folder, tmp_path / "copy")


def change_facts(folder, change):
    path = folder / "bundle.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def test_a_whole_bundle_opens(folder):
    opened = open_bundle(str(folder))
    assert opened.name == "phantom" and opened.sam_config == SAM_CONFIG
    assert set(FILES) <= set(opened.description["files"])
    assert opened.clip.image_size == 96 and opened.clip is opened.clip
    assert opened.sam.image_encoder.img_size == 128
    for name, digest in opened.description["files"].items():
        assert sha256_file(folder / name) == digest and len(digest) == 64


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_one_altered_bit_is_found(folder, name, at):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[at]] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"altered or cut short.*again") as caught:
        open_bundle(str(folder))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_found(folder, name, keep):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] if keep == -1 else data[: int(keep * len(data))])
    with pytest.raises(BundleError, match=r"cut short.*again") as caught:
        open_bundle(str(folder))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=r"cannot be read.*copy or import it again") as caught:
        open_bundle(str(folder))
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "clip/../../secret", "link"])
def test_files_outside_are_refused(folder, name):
    outside = folder.parent / "secret"
    outside.write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    change_facts(folder, lambda facts: facts["files"].update({name: sha256_file(outside)}))
    with pytest.raises(BundleError, match="outside itself") as caught:
        open_bundle(str(folder))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", ["clip/model.safetensors", "sam/model.safetensors", "clip/open_clip_config.json"]
)
def test_files_that_are_loaded_must_be_named(folder, name):
    """Without its hash a file could be exchanged unseen."""
    change_facts(folder, lambda facts: facts["files"].pop(name))
    with pytest.raises(BundleError, match=name):
        open_bundle(str(folder))


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(folder, schema):
    change_facts(folder, lambda facts: facts.update(schema=schema))
    with pytest.raises(BundleError, match=f"schema {schema!r}.*models import"):
        open_bundle(str(folder))


@pytest.mark.parametrize("key", ["name", "clip", "sam", "files", "schema"])
def test_an_incomplete_description_is_refused(folder, key):
    change_facts(folder, lambda facts: facts.pop(key))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        open_bundle(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"schema": 1}', "\udcff"])
def test_what_is_not_a_description_is_refused(folder, text):
    (folder / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"bundle\.json is not a readable bundle"):
        open_bundle(str(folder))


def test_unknown_names_are_told_what_is_there(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path))
    shutil.move(folder, tmp_path / "bundles" / "mine")
    with pytest.raises(BundleError, match=r"no bundle 'theirs'.*mine.*medclipsam models"):
        open_bundle("theirs")


def test_found_by_folder_by_name_and_at_home(tmp_path, monkeypatch, folder):
    home, shipped = tmp_path / "home", tmp_path / "shipped"
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(home))
    monkeypatch.setattr(module, "SHIPPED", shipped)
    with pytest.raises(BundleError, match=r"\(none\)"):
        find_bundle("tiny")
    shutil.copytree(folder, shipped / "tiny")
    assert find_bundle("tiny") == shipped / "tiny"
    shutil.copytree(folder, home / "bundles" / "tiny")
    assert find_bundle("tiny") == home / "bundles" / "tiny"  # the user's own wins
    assert list_bundles() == [home / "bundles" / "tiny"]
    shutil.copytree(folder, shipped / "other")
    assert set(list_bundles()) == {home / "bundles" / "tiny", shipped / "other"}
    assert find_bundle(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert find_bundle("copy").resolve() == folder
    assert open_bundle("tiny").folder == home / "bundles" / "tiny"


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "a"))
    assert user_folder() == tmp_path / "a" / "bundles"
    monkeypatch.delenv("MEDCLIPSAM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert user_folder() == tmp_path / "b" / "medclipsam" / "bundles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert user_folder() == tmp_path / "c" / ".cache" / "medclipsam" / "bundles"


def shorten(state):
    state[max(state, key=lambda k: state[k].numel())] = torch.zeros(3)


def rename(state):
    state["another"] = state.pop(next(iter(state)))


@pytest.mark.parametrize("part", ["clip", "sam"])
@pytest.mark.parametrize("change", [shorten, rename, lambda state: state.popitem()])
def test_weights_of_another_model_are_refused(folder, part, change):
    path = folder / part / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    change_facts(
        folder,
        lambda facts: facts["files"].update({f"{part}/model.safetensors": sha256_file(path)}),
    )
    opened = open_bundle(str(folder))
    with pytest.raises(BundleError, match="weights of another model") as caught:
        getattr(opened, part)
    assert str(path) in str(caught.value)


def test_weights_that_are_not_safetensors_are_refused(folder):
    path = folder / "sam" / "model.safetensors"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        _ = Bundle(folder, open_facts(folder)).sam


def open_facts(folder):
    return json.loads((folder / "bundle.json").read_text())


def test_a_clip_without_a_timm_tower_is_refused(folder):
    path = folder / "clip" / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["vision_cfg"]["timm_model_name"]
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match="timm"):
        _ = Bundle(folder, open_facts(folder)).clip


def test_the_digest_knows_weights_and_nothing_else(folder):
    before = open_bundle(str(folder))
    change_facts(folder, lambda facts: facts.update(notes={"a": 1}, defaults={}))
    assert open_bundle(str(folder)).digest == before.digest
    (folder / "sam" / "extra").write_bytes(b"1")
    again = write_description(folder, "phantom", {}, "x", SAM_CONFIG, {"fit": "pad"})
    assert again.digest != before.digest and again.defaults == {"fit": "pad"}
    assert open_bundle(str(folder)).digest == again.digest
