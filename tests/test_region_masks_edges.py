"""Masks from where they are given to the model: data sets, conversion, captions, benchmarks, command line and API."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from test_region_chat import chat_with, make_image
from test_region_masks import BOX, SIZE, left_half, sensitive

from gpt4roi.captioning.run import caption_file
from gpt4roi.captioning.source import read_source
from gpt4roi.cli import main
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.predictor import ModelPredictor
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.geometry.frames import BoxFrame, ImageHeader
from gpt4roi.geometry.masks import to_raster

TRIANGLE = [[10, 20, 66, 20, 10, 48]]
TURNS = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a cup"}]


def runs(mask: np.ndarray) -> dict:
    """COCO's run lengths of an array."""
    column = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges, [column.size]])).tolist()}


@pytest.fixture
def photo(tmp_path):
    make_image().save(tmp_path / "a.png")
    return tmp_path


@pytest.fixture(scope="module")
def chat():
    return sensitive("pyramid")


@pytest.fixture(scope="module")
def expected(chat):
    """Answers about BOX: with the triangle, with its left half, and with all of it."""
    answers = chat.describe(make_image(), [TRIANGLE, left_half(), BOX], max_new_tokens=8)
    assert len(set(answers)) == 3
    return answers


def test_samples_of_the_unified_format_have_the_masks_of_their_boxes(photo, chat):
    entry = {"image": "a.png", "masks": [TRIANGLE, runs(left_half())], "conversations": TURNS}
    (photo / "t.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "boxes": [BOX], "masks": None}))
    data = UnifiedDataset(photo / "t.jsonl")
    masked, boxed = (data.sample(index, np.random.default_rng(0)) for index in range(2))
    assert masked.boxes_px.tolist() == [BOX, BOX] and boxed.masks == ()
    assert np.array_equal(masked.masks[0], to_raster(TRIANGLE, BOX))
    assert np.array_equal(masked.masks[1], to_raster(left_half(), BOX))
    assert chat.processor.encode(masked)["masks"].mean() == pytest.approx(0.5, abs=0.01)
    assert chat.processor.encode(boxed)["masks"].mean() == 1


@pytest.mark.parametrize("form", ["coco", "osprey"])
def test_conversion_writes_masks_where_they_are_asked_for(photo, form):
    (x1, y1, x2, y2), segmentation = BOX, runs(left_half())
    if form == "coco":
        common = {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations = [{**common, "segmentation": segmentation}, common]
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations}
        content["categories"] = [{"id": 1, "name": "cup"}]
    else:
        regions = [{"segmentation": segmentation}, {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}]
        described = ["<region1>: cup", "<region2>: cup"]
        content = [{"file_name": "a.png", "height": 64, "width": 96, "annotation": regions, "description": described}]
    (photo / "in.json").write_text(json.dumps(content))
    command = ["data", "convert", str(photo / "in.json"), str(photo / "out.jsonl"), "--from", form]
    assert main([*command, "--masks"]) == 0
    masked = UnifiedDataset(photo / "out.jsonl").sample(0, np.random.default_rng(0))
    assert masked.boxes_px.tolist() == [BOX, BOX]
    assert [float(mask.mean()) for mask in masked.masks] == pytest.approx([0.5006, 1], abs=1e-3)
    assert main([*command, "--overwrite"]) == 0
    boxed = UnifiedDataset(photo / "out.jsonl").sample(0, np.random.default_rng(0))
    assert boxed.boxes_px.tolist() == [BOX, BOX] and boxed.masks == ()


def test_captions_are_of_the_masks_and_a_model_of_boxes_says_that_it_reads_boxes(photo, chat, expected, caplog):
    (x1, y1, x2, y2), rest = BOX, {"image_id": 1, "category_id": 1}
    rows = [{**rest, "id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]} for number in range(3)]
    rows[0]["segmentation"], rows[1]["segmentation"] = TRIANGLE, runs(left_half())
    images = [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}]
    (photo / "in.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": []}))
    params = SamplingParams(8)

    def captions(model, name):
        source = read_source(photo / "in.json", photo)
        caption_file(model, source, photo / name, {}, "What is <region1>?", params)
        return [row["caption"] for row in json.loads((photo / name).read_text())["annotations"]]

    assert captions(chat, "masks.json") == expected
    with caplog.at_level("INFO"):
        assert len(set(captions(chat_with("pyramid"), "boxes.json"))) == 1
    said = "2 annotations have masks, of which the model reads the boxes (region_shape is 'box')"
    assert caplog.messages.count(said) == 1


def test_benchmarks_of_masks_ask_about_them_also_on_turned_images(tmp_path, chat, expected):
    turned = make_image().transpose(Image.Transpose.ROTATE_90)  # stored; seen, it is as made
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    make_image().save(tmp_path / "b.png")
    stored = np.rot90(left_half())
    records = [
        {"file_name": "a.png", "height": 96, "width": 64, "annotations": [{"segmentation": runs(stored)}]},
        {"file_name": "b.png", "height": 64, "width": 96, "annotations": [{"segmentation": TRIANGLE}]},
    ]
    records = [{**record, "categories": ["cup"]} for record in records]
    (tmp_path / "lvis.json").write_text(json.dumps(records))
    items = read_items("lvis", Source(tmp_path / "lvis.json", images=tmp_path))
    assert [item.query.boxes_px.tolist() for item in items] == [[BOX], [BOX]]
    assert np.array_equal(items[0].query.masks[0], to_raster(left_half(), BOX))
    predict = ModelPredictor(chat.model, chat.processor, max_new_tokens=8)
    asked = [item.query for item in items]
    questions = [
        chat.describe(make_image(), [one], asked[0].question, max_new_tokens=8)[0] for one in (left_half(), TRIANGLE)
    ]
    assert predict(asked) == questions


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_turns_with_its_box(orientation):
    from gpt4roi.processing.images import _TURNS

    stored = left_half()
    box = np.array([BOX])
    placed = BoxFrame(ImageHeader(SIZE, orientation), "stored")
    image = Image.fromarray(stored)
    seen = np.asarray(image if orientation == 1 else image.transpose(_TURNS[orientation]))
    got = placed.upright_mask(to_raster(stored, BOX))
    np.testing.assert_allclose(got, to_raster(seen, placed.upright(box)[0]), atol=1e-6)


@pytest.fixture(scope="module")
def model_folder(chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat.model.save_pretrained(folder)
    chat.processor.save_pretrained(folder)
    return folder


@pytest.mark.heavy
def test_the_command_line_takes_masks_and_points_beside_boxes(photo, model_folder, chat, expected, capsys):
    Image.fromarray(left_half()).save(photo / "mask.png")
    given = ["--mask", str(photo / "mask.png"), "--point", "50,30", "--box", "10,20,66,48"]
    common = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "8"]
    assert main(["describe", str(photo / "a.png"), *given, *common, "--json"]) == 0
    regions = json.loads(capsys.readouterr().out)["regions"]
    point = chat.describe(make_image(), [{"point": [50, 30]}], max_new_tokens=8)
    assert [region["answer"] for region in regions] == [expected[1], *point, expected[2]]
    assert [region["box"] for region in regions] == [BOX, [48.08, 28.08, 51.92, 31.92], BOX]
    (photo / "r.json").write_text(json.dumps([{"bbox": [10, 20, 56, 28], "segmentation": TRIANGLE}]))
    assert main(["describe", str(photo / "a.png"), "--regions", str(photo / "r.json"), *common, "--json"]) == 0
    (region,) = json.loads(capsys.readouterr().out)["regions"]
    assert (region["box"], region["answer"]) == (BOX, expected[0])
    assert main(["describe", str(photo / "a.png"), "--point", "50", *common]) == 2
    assert "region 1: expected a point x,y in pixels, got '50'" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_api_takes_masks_among_its_boxes(chat, expected):
    pytest.importorskip("uvicorn")
    import base64
    import io
    import urllib.request

    from gpt4roi.serving.server import RunningApi, ServingOptions

    file = io.BytesIO()
    make_image().save(file, "PNG")
    running = RunningApi(chat, "tiny", ServingOptions(port=0))
    thread = running.start()
    try:
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        body = {"image": url, "boxes": [TRIANGLE, runs(left_half()), BOX], "max_tokens": 8}
        request = urllib.request.Request(f"{running.url}/v1/regions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            regions = json.loads(response.read())["regions"]
        assert [region["answers"][0]["answer"] for region in regions] == expected
        assert [region["box"] for region in regions] == [BOX] * 3
    finally:
        running.close()
        thread.join(30)
