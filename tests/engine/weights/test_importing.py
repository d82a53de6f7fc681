"""Weights on disk → a bundle: what fits is converted, what is unsafe or foreign is refused."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medclipsam.engine.errors import BundleError, ConfigError
from medclipsam.engine.weights import importing
from medclipsam.engine.weights.bundle import (
    CLIP_FOLDER,
    SAM_FOLDER,
    WEIGHTS,
    open_bundle,
    sha256_file,
)
from medclipsam.engine.weights.importing import Source, import_bundle
from medclipsam.train.phantoms.bundle import SAM_CONFIG


@pytest.fixture
def sources(tiny_bundle_folder, tmp_path, monkeypatch):
    """An open_clip folder and a SAM checkpoint as their publishers ship them."""
    monkeypatch.setitem(importing.SAM_PRESETS, "tiny", SAM_CONFIG)
    clip = tmp_path / "clip"
    shutil.copytree(tiny_bundle_folder / CLIP_FOLDER, clip)
    state = load_file(clip / WEIGHTS)
    (clip / WEIGHTS).unlink()
    torch.save(state, clip / "open_clip_pytorch_model.bin")
    sam = tmp_path / "sam.pth"
    torch.save(load_file(tiny_bundle_folder / SAM_FOLDER / WEIGHTS), sam)
    return clip, sam


def hashed(path):
    return Source(path, sha256_file(path))


def test_pickles_with_their_hash_become_a_verified_safetensors_bundle(
    sources, tiny_bundle, tmp_path
):
    clip, sam = sources
    weights = hashed(clip / "open_clip_pytorch_model.bin")
    bundle = import_bundle("mine", clip, hashed(sam), "tiny", tmp_path / "mine", weights)
    opened = open_bundle(str(tmp_path / "mine"))
    assert opened.digest == bundle.digest
    assert not [p for p in opened.folder.rglob("*") if p.suffix in (".bin", ".pth", ".pt")]
    for ours, theirs in (
        (opened.clip.model, tiny_bundle.clip.model),
        (opened.sam, tiny_bundle.sam),
    ):
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    assert (
        opened.clip.tokenizer(["a mass"]).tolist()
        == tiny_bundle.clip.tokenizer(["a mass"]).tolist()
    )


def test_a_pickle_of_unknown_hash_is_refused_and_nothing_is_left(sources, tmp_path):
    clip, sam = sources
    with pytest.raises(BundleError, match=r"unknown sha256 .* --clip-sha256"):
        import_bundle("mine", clip, hashed(sam), "tiny", tmp_path / "mine")
    assert not [p for p in tmp_path.iterdir() if "mine" in p.name]


def test_a_wrong_hash_is_refused(sources, tmp_path):
    clip, sam = sources
    weights = hashed(clip / "open_clip_pytorch_model.bin")
    with pytest.raises(BundleError, match="expected 0000"):
        import_bundle("x", clip, Source(sam, "0000"), "tiny", tmp_path / "x", weights)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_never_run(sources, tmp_path, capsys):
    clip, _ = sources
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"state_dict": Evil()}))
    weights = hashed(clip / "open_clip_pytorch_model.bin")
    with pytest.raises(BundleError, match="more than weights"):
        import_bundle("x", clip, hashed(evil), "tiny", tmp_path / "x", weights)
    assert "code ran" not in capsys.readouterr().out


def test_fine_tuned_weights_replace_the_folders(sources, tmp_path):
    """A training checkpoint: under ``state_dict``, with the prefix of data parallelism."""
    clip, sam = sources
    state = torch.load(clip / "open_clip_pytorch_model.bin", weights_only=True)
    state["logit_scale"] = torch.tensor(1.25)
    tuned = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tuned)
    bundle = import_bundle("t", clip, hashed(sam), "tiny", tmp_path / "t", hashed(tuned))
    assert float(bundle.clip.model.logit_scale.detach()) == 1.25


def test_safetensors_need_no_hash(sources, tmp_path):
    clip, sam = sources
    state = torch.load(clip / "open_clip_pytorch_model.bin", weights_only=True)
    save_file(state, clip / "open_clip_model.safetensors")
    import_bundle("s", clip, hashed(sam), "tiny", tmp_path / "s")


def test_weights_of_another_model_are_refused(sources, tmp_path):
    clip, sam = sources
    weights = hashed(clip / "open_clip_pytorch_model.bin")
    with pytest.raises(BundleError, match="another model"):
        import_bundle("x", clip, hashed(sam), "vit_b", tmp_path / "x", weights)


def test_existing_folders_and_unknown_types_are_refused(sources, tmp_path):
    clip, sam = sources
    with pytest.raises(ConfigError, match="exists already"):
        import_bundle("x", clip, Source(sam), "tiny", tmp_path)
    with pytest.raises(ConfigError, match="unknown SAM type"):
        import_bundle("x", clip, Source(sam), "vit_z", tmp_path / "x")


def test_a_folder_that_is_no_open_clip_model_is_refused(sources, tmp_path):
    clip, sam = sources
    description = json.loads((clip / "open_clip_config.json").read_text())
    del description["model_cfg"]["text_cfg"]["hf_model_name"]
    (clip / "open_clip_config.json").write_text(json.dumps(description))
    weights = hashed(clip / "open_clip_pytorch_model.bin")
    with pytest.raises(BundleError, match="no open_clip model folder"):
        import_bundle("x", clip, hashed(sam), "tiny", tmp_path / "x", weights)


def test_the_released_text_tower_is_known_without_a_network(sources, tmp_path):
    """BiomedCLIP's configuration names its text tower only; its sizes are BERT-base's."""
    clip, _ = sources
    shutil.rmtree(clip / "text_config")
    description = json.loads((clip / "open_clip_config.json").read_text())
    name = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    description["model_cfg"]["text_cfg"]["hf_model_name"] = name
    (clip / "open_clip_config.json").write_text(json.dumps(description))
    importing._copy_clip_description(clip, tmp_path / "copy")
    sizes = json.loads((tmp_path / "copy" / "text_config" / "config.json").read_text())
    assert (sizes["vocab_size"], sizes["hidden_size"], sizes["num_hidden_layers"]) == (
        30522,
        768,
        12,
    )
