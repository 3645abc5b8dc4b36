"""Pictures from folders: found, cropped and normalised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from distopt.data import ImageFolder
from distopt.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def save_picture(path, colour=(255, 0, 0), size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes, of red and of blue pictures, in three formats."""
    for name in ("2.png", "1.JPG", "3.webp"):
        save_picture(tmp_path / "red" / name)
    save_picture(tmp_path / "blue" / "1.png", (0, 0, 255))
    (tmp_path / "blue" / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_found_in_order_and_labelled_by_folder(pictures):
    dataset = ImageFolder(str(pictures), train=False, size=8)

    assert dataset.classes == ["blue", "red"]
    assert [label for _, label in dataset] == [0, 1, 1, 1]
    assert [file for file, _ in dataset.files] == ["blue/1.png", "red/1.JPG", "red/2.png", "red/3.webp"]


def test_pictures_are_normalised_as_imagenets(pictures):
    image, _ = ImageFolder(str(pictures), train=False, size=8)[2]

    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(image, red[:, None, None])


def test_evaluation_sees_the_centre(tmp_path):
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 255, 255), (18, 2, 46, 30))  # 7/8 of the height, in the middle
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "1.png")

    image, _ = ImageFolder(str(tmp_path), train=False, size=28)[0]

    white = (torch.ones(3) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(image, white[:, None, None])


def test_training_crops_at_random_by_torchs_generator(tmp_path):
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "1.png")
    dataset = ImageFolder(str(tmp_path), train=True, size=16)

    torch.manual_seed(3)
    first, second = dataset[0][0], dataset[0][0]
    torch.manual_seed(3)

    assert torch.equal(dataset[0][0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [(400, 3), (3, 400)])
def test_a_picture_too_narrow_for_a_random_crop_is_cropped_in_the_centre(tmp_path, size):
    save_picture(tmp_path / "a" / "1.png", size=size)

    assert ImageFolder(str(tmp_path), train=True, size=8)[0][0].shape == (3, 8, 8)


def test_grey_and_transparent_pictures_have_three_channels_too(tmp_path):
    (tmp_path / "a").mkdir()
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (9, 9)).save(tmp_path / "a" / f"{mode}.png")

    assert [image.shape for image, _ in ImageFolder(str(tmp_path), size=8)] == [(3, 8, 8)] * 3


def test_a_damaged_picture_is_named(pictures):
    file = pictures / "blue" / "1.png"
    file.write_bytes(file.read_bytes()[:-30])

    with pytest.raises(OSError, match=r"^blue/1\.png: "):
        ImageFolder(str(pictures))[0]


@pytest.mark.parametrize(
    ("folders", "problem"),
    [([], "no such folder"), (["."], "no folders in it"), (["a", "b"], "no pictures in its 2 folders")],
)
def test_a_root_without_pictures_is_an_error(tmp_path, folders, problem):
    root = tmp_path / "root"
    for folder in folders:
        (root / folder).mkdir(parents=True)

    with pytest.raises(ConfigError, match=problem) as caught:
        ImageFolder(str(root))

    assert (caught.value.key, caught.value.given) == ("root", str(root))
