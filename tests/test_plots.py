"""Pictures keep their promises: zero is white, plus and minus weigh alike, equal steps look equal, ranges are said."""

import numpy as np
import pytest
import torch

from deeptaylor import plots
from deeptaylor.errors import InputError

MAP = np.array([[0.0, 1.0, -1.0], [0.5, -0.5, 0.0]])


def over(background, colours):
    alpha = colours[..., 3:] / 255
    return colours[..., :3] * alpha + background * (1 - alpha)


def test_zero_relevance_is_white_and_fully_transparent():
    colours = plots.rgba(MAP)
    assert (plots.palette()[plots.steps(MAP)][MAP == 0] == 255).all()
    assert (colours[MAP == 0][:, 3] == 0).all()


def test_positive_is_red_and_negative_is_blue():
    colours = plots.rgba(MAP, limit=1.0)
    red, blue = colours[0, 1].astype(int), colours[0, 2].astype(int)
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100


def test_transparency_does_not_change_a_colour_over_white():
    colours = plots.palette()
    assert np.abs(over(255.0, plots.see_through(colours)) - colours).max() <= 1.5  # alpha and colour are bytes


def test_equal_steps_of_relevance_are_equal_steps_of_colour():
    color = pytest.importorskip("skimage.color")
    colours = plots.palette(33).astype(float) / 255
    lab = color.rgb2lab(colours[None])[0]
    difference = color.deltaE_ciede2000(lab[:-1], lab[1:])
    assert difference.std() / difference.mean() < 0.1  # matplotlib's RdBu_r: 0.3, bwr: 0.4
    assert np.abs(lab[:, 0] - lab[::-1, 0]).max() < 2  # minus is as dark as plus
    assert (np.diff(lab[:17, 0]) > 0).all()


def test_channels_are_summed_and_a_lone_sample_may_keep_its_axis():
    relevance = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert np.array_equal(plots.image(relevance), relevance[0].sum(0).numpy())


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5,), (0, 4)], ids=str)
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(InputError, match="a picture needs"):
        plots.image(torch.zeros(shape))


def test_nan_has_no_colour():
    with pytest.raises(InputError, match="NaN"):
        plots.rgba(np.full((2, 2), np.nan))


def test_one_hot_pixel_does_not_bleach_the_rest():
    values = np.ones((100, 100))
    values[0, 0] = 1e6
    assert plots.robust_limit(values) == 1.0


def test_a_map_of_one_pixel_still_shows_it():
    values = np.zeros((100, 100))
    values[3, 4] = 2.0
    assert plots.robust_limit(values) == 2.0


def test_a_map_of_zeros_is_white():
    assert (plots.rgba(np.zeros((4, 4)))[..., 3] == 0).all()


def texts(figure):
    import matplotlib.text

    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_a_heatmap_says_its_range_and_what_saturates_it():
    said = texts(plots.heatmap(MAP, title="tripod"))
    assert "tripod" in said
    assert "from -1 to 1, sum 0" in said
    assert "99.5th percentile" in said


def test_a_chosen_limit_is_said_to_be_chosen():
    assert "chosen limit" in texts(plots.heatmap(MAP, limit=0.25))


def test_a_grid_writes_every_maps_own_range_under_it():
    said = texts(plots.grid([[MAP, 10 * MAP]], columns=["epsilon", "deep-taylor"], rows=["coffee"]))
    for word in ("epsilon", "deep-taylor", "coffee", "±1 ", "±10 "):
        assert word in said


def test_a_grid_with_one_limit_compares_depths_of_colour():
    figure = plots.grid([[MAP, 10 * MAP]], limit=10.0)
    assert "±10 " in texts(figure)
    assert "percentile" not in texts(figure)


def test_ragged_rows_and_missing_photos_are_refused():
    with pytest.raises(InputError, match="every row as long"):
        plots.grid([[MAP], [MAP, MAP]])
    with pytest.raises(InputError, match="one photo per row"):
        plots.grid([[MAP]], photos=[])


def test_strong_relevance_covers_the_photo_and_zero_lets_it_through():
    photo = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels = plots.overlay(MAP, photo, limit=1.0)
    assert (pixels[0, 0] == np.rint(plots.backdrop(photo, (2, 3))[0, 0])).all()
    assert pixels[0, 1, 0] > pixels[0, 1, 2] + 80


@pytest.mark.parametrize("photo", [torch.zeros(3, 5, 5), np.zeros((9, 9), np.uint8)], ids=["tensor", "grey"])
def test_a_photo_of_another_size_is_refused(photo):
    with pytest.raises(InputError, match="as the network saw it"):
        plots.heatmap(MAP, photo=photo)


def test_a_normalised_photo_is_refused():
    with pytest.raises(InputError, match="before normalisation"):
        plots.heatmap(torch.zeros(4, 4), photo=torch.randn(3, 4, 4) * 3)


def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.heatmap(MAP, photo=np.zeros((2, 3, 3), np.uint8)).savefig(tmp_path / "map.png")
    assert plt.get_fignums() == before
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_into_given_axes_returns_their_figure():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    assert plots.heatmap(MAP, ax=axes) is figure
    assert axes.images


def test_an_attribution_draws_itself():
    import deeptaylor as dt

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2)
    ).eval()
    assert "percentile" in texts(dt.explain(model, torch.rand(1, 3, 8, 8)).plot(title="mine"))
