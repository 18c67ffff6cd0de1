"""The HTML report: one offline file with everything escaped."""

import base64
import io
import re

from PIL import Image

from gpt4roi.report.report import Answer, Bin, Estimate, GalleryItem, Report, Tag


def image(color: str = "navy", size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_the_page_refers_to_nothing_outside_itself(tmp_path):
    answers = [Answer("What is <region1>?", "a cat", "a cat", True, "caption")]
    page = Report("Title", "lead").facts([("captions", "93 %", "n=4")])
    page.gallery("Scenes", [GalleryItem(image(), [[1, 2, 30, 40]], "scene", answers)])

    text = page.write(tmp_path / "deep" / "report.html").read_text()

    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_everything_that_comes_from_data_is_escaped():
    nasty = "<script>alert('x')</script>\"&"
    page = Report(nasty, nasty).text(nasty, nasty).facts([(nasty, nasty, nasty)])
    page.table(nasty, [nasty], [[nasty]], nasty)
    page.gallery(nasty, [GalleryItem(image(), [], nasty, [Answer(nasty, nasty, nasty, False, nasty)])], nasty)

    html = page.html()

    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert html.count("&lt;script&gt;alert") == html.count("alert(") > 15
    assert html.count("&lt;/script&gt;&#34;&amp;") == html.count("alert(")


def test_images_are_embedded_as_small_jpegs_and_boxes_keep_the_pixels_of_the_original():
    html = Report("t").gallery("g", [GalleryItem(image(size=(2000, 1000)), [[100, 200, 300, 450]])]).html()

    data = re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1]
    embedded = Image.open(io.BytesIO(base64.b64decode(data)))

    assert embedded.format == "JPEG" and embedded.size == (480, 240)
    assert 'viewBox="0 0 2000 1000"' in html
    assert '<rect x="100.0" y="200.0" width="200.0" height="250.0"' in html


def test_images_may_be_paths_bytes_or_pil(tmp_path):
    path = tmp_path / "p.png"
    image().save(path)

    html = Report("t").gallery("g", [GalleryItem(p) for p in (path, path.read_bytes(), image())]).html()

    assert html.count("data:image/jpeg;base64,") == 3


def test_files_are_shown_upright_and_a_damaged_one_does_not_cost_the_page(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image().save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "damaged.jpg").write_bytes(b"no image")

    answers = [Answer("What?", "(not answered: it is no image)", region=0)]
    items = [GalleryItem(tmp_path / f"{name}.jpg", [[1, 2, 90, 70]], name, answers) for name in ("turned", "damaged")]
    html = Report("t").gallery("g", items).html()

    assert 'width="48" height="64"' in html and 'width="90" height="70"' in html
    assert html.count("(not answered: it is no image)") == 2


def test_the_gallery_shows_the_worst_image_first_and_remembers_the_written_order():
    def item(name, *verdicts):
        return GalleryItem(image(), [], name, [Answer("q", "a", "b", verdict, "caption") for verdict in verdicts])

    html = Report("t").gallery("g", [item("good", True, True), item("bad", False, True), item("none", None)]).html()

    assert re.findall(r'data-index="(\d)".*?<span>(\w+)</span>', html) == [("1", "bad"), ("0", "good"), ("2", "none")]


def test_a_wrong_answer_shows_the_truth_and_a_right_one_does_not_repeat_it():
    answers = [Answer("q", "pear", "apple", False, "caption"), Answer("q", "plum", "plum", True, "caption")]

    html = Report("t").gallery("g", [GalleryItem(image(), [], "s", answers)]).html()

    assert re.findall(r"truth: <b>(\w+)</b>", html) == ["apple"]
    assert "1 of 2 right" in html


def test_mentions_of_a_region_carry_the_colour_of_its_box():
    answers = [Answer("Is <region2> left of region1?", "region2")]

    html = Report("t").gallery("g", [GalleryItem(image(), [[0, 0, 9, 9], [9, 9, 19, 19]], "s", answers)]).html()
    chips = re.findall(r'class="region" style="--c:(#\w+)">region(\d)<', html)
    strokes = re.findall(r'stroke="(#\w+)"', html)

    assert chips == [(strokes[1], "2"), (strokes[0], "1"), (strokes[1], "2")]


def test_a_share_is_written_in_percent_with_its_interval_and_its_count():
    html = (
        Report("t")
        .table("a", ["task", "right"], [["caption", Estimate(0.931, 0.905, 0.952, 450, percent=True)]])
        .html()
    )

    assert "<b>93.1</b>" in html and "90.5–95.2 · n=450" in html


def test_columns_of_numbers_are_set_to_the_right():
    html = Report("t").table("a", ["phase", "minutes"], [["stage 1", 0.9], ["stage 2", None]]).html()

    assert '<th class="num">minutes</th>' in html and '<td class="num">0.9</td>' in html


def test_a_folded_table_is_in_the_page_behind_its_title():
    html = Report("t").table("Details", ["a"], [["x"]], folded=True).html()

    assert "<details><summary><h2>Details</h2></summary>" in html and "<td>x</td>" in html


def test_an_answer_can_carry_references_scores_and_the_crop_of_its_region():
    answer = Answer("q", "pear", task="caption", references=["apple", "<b>"], scores={"CIDEr": 0.25}, region=1)

    html = Report("t").gallery("g", [GalleryItem(image(), [[0, 0, 9, 9], [9, 9, 40, 30]], "s", [answer])]).html()
    crop = re.search(r'class="crop"[^>]*src="data:image/jpeg;base64,([^"]+)', html)[1]

    assert Image.open(io.BytesIO(base64.b64decode(crop))).size == (31, 21)
    assert "<li>apple</li><li>&lt;b&gt;</li>" in html
    assert 'data-name="CIDEr" data-value="0.25"' in html and '<option value="score:CIDEr">' in html
    assert "right" not in re.search(r'<div class="bar">.*?<input', html)[0]


def test_answers_without_a_verdict_are_ordered_by_their_first_score():
    def item(name, value):
        return GalleryItem(image(), [], name, [Answer("q", "a", scores={"CIDEr": value, "other": -value})])

    html = Report("t").gallery("g", [item("good", 2.0), item("bad", 0.1), item("middle", 1.0)]).html()

    assert re.findall(r"<figcaption><span>(\w+)</span>", html) == ["bad", "middle", "good"]


def test_what_another_run_answered_is_shown_where_it_differs():
    answers = [
        Answer("q", "pear", "apple", False, before="apple", before_score=1.0),
        Answer("q", "plum", "plum", True, before="plum"),
    ]

    html = Report("t").gallery("g", [GalleryItem(image(), [], "s", answers)]).html()

    assert html.count("before: <s>apple</s> (1)") == 1 and html.count("before:") == 1
    assert 'data-verdict="changed"' in html and html.count('class="answer wrong changed"') == 1


def test_a_histogram_shows_counts_as_bars_and_the_mean_score_beside_them():
    html = Report("t").histograms("h", [("box size", [Bin("small", 10, 0.25), Bin("large", 5)])]).html()

    assert '<i style="width:100.0%"></i></td><td class="num">10</td><td class="num">0.25</td>' in html
    assert '<i style="width:50.0%"></i></td><td class="num">5</td><td class="num"></td>' in html


def test_a_figure_that_is_no_share_is_written_as_it_is_with_its_interval():
    html = Report("t").table("a", ["", "CIDEr"], [["val", Estimate(1.3452, 1.30, 1.39, 80)]]).html()

    assert "<b>1.345</b><small>1.3–1.39 · n=80</small>" in html


def test_a_tag_is_a_word_on_a_coloured_plate():
    html = Report("T").table("Found", ["", "what"], [[Tag("<error>", "bad"), "x"]]).html()
    assert '<td><span class="tag bad">&lt;error&gt;</span></td>' in html


def test_spans_stand_below_the_image_with_their_marked_parts():
    item = GalleryItem(image(), spans=[("Human: <bbox>?", False), ("a <cat>", True)])
    html = Report("T").gallery("Prompts", [item]).html()
    assert "<pre>Human: &lt;bbox&gt;?<mark>a &lt;cat&gt;</mark></pre>" in html


def test_a_histogram_without_means_has_no_column_for_them():
    bare = Report("T").histograms("H", [("h", [Bin("0 to 9", 3)])]).html()
    assert ">mean<" not in bare and ">mean<" in Report("T").histograms("H", [("h", [Bin("0", 3, 0.5)])]).html()
