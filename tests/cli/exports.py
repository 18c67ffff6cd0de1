"""Exports of annotation tools and detectors, field by field as each writes them, of one photograph with one square."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from phone import HEIGHT, STORED, WIDTH, seen, xywh
from PIL import Image
from pycocotools import mask as coco_mask

NAME = "red square"


def area(box: Any) -> float:
    """Returns the area of a box xyxy."""
    return (box[2] - box[0]) * (box[3] - box[1])


def polygon(box: Any) -> list[float]:
    """Returns the corners of a box as COCO writes a polygon."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def runs(size: tuple[int, int], box: Any) -> dict[str, Any]:
    """Returns compressed run lengths of a box in an image of (height, width)."""
    pixels = np.zeros(size, dtype=np.uint8, order="F")
    pixels[box[1] : box[3], box[0] : box[2]] = 1
    encoded = coco_mask.encode(pixels)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def labelme2coco(folder: Path, orientation: int) -> Any:
    """Annotations without ids, categories from 0, the image's absolute path; upright."""
    (height, width), box = seen(orientation)
    image = {"id": 1, "file_name": str(folder / "phone.jpg"), "height": height, "width": width}
    row = {"image_id": 1, "bbox": [], "category_id": 0, "segmentation": [polygon(box)], "iscrowd": 0, "area": area(box)}
    categories = [{"id": 0, "name": NAME, "supercategory": NAME}]
    return {"images": [image], "annotations": [row], "categories": categories}


def label_studio(folder: Path, orientation: int) -> Any:
    """The size of the stored image beside boxes of the upright one, images by the path on its server."""
    _, box = seen(orientation)
    image = {"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": "../../label-studio/data/media/upload/1/phone.jpg"}
    row = {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [], "bbox": xywh(box), "ignore": 0, "iscrowd": 0}
    info = {"year": 2024, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""}
    categories = [{"id": 0, "name": NAME}]
    return {"images": [image], "categories": categories, "annotations": [{**row, "area": area(box)}], "info": info}


def label_studio_masks(folder: Path, orientation: int) -> Any:
    """The same with brush masks, run lengths of the upright image."""
    content, (size, box) = label_studio(folder, orientation), seen(orientation)
    content["annotations"][0] |= {"bbox": [], "segmentation": runs(size, box)}
    return content


def cvat(folder: Path, orientation: int) -> Any:
    """CVAT's and datumaro's, upright."""
    (height, width), box = seen(orientation)
    image = {"id": 1, "width": width, "height": height, "file_name": "phone.jpg", "license": 0, "flickr_url": ""}
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [], "area": area(box), "bbox": xywh(box)}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": NAME, "supercategory": ""}],
        "images": [{**image, "coco_url": "", "date_captured": 0}],
        "annotations": [{**row, "iscrowd": 0, "attributes": {"occluded": False, "rotation": 0.0}}],
    }


def supervision(folder: Path, orientation: int) -> Any:
    """Upright, as OpenCV reads images; a mask of several parts would be a crowd with run lengths."""
    (height, width), box = seen(orientation)
    image = {"id": 1, "license": 1, "file_name": "phone.jpg", "height": height, "width": width}
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": xywh(box), "area": float(area(box))}
    return {
        "info": {},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [{"id": 1, "name": NAME, "supercategory": "common-objects"}],
        "images": [{**image, "date_captured": "07/20/2025,19:39:26"}],
        "annotations": [{**row, "segmentation": [polygon(box)], "iscrowd": 0}],
    }


def kwcoco(folder: Path, orientation: int) -> Any:
    """Tables of its own, info as a list, polygons with exterior and interiors; upright."""
    (height, width), box = seen(orientation)
    corners = np.asarray(polygon(box)).reshape(-1, 2).tolist()
    segmentation = {"exterior": corners, "interiors": []}
    return {
        "info": [],
        "licenses": [],
        "categories": [{"name": NAME, "id": 1}],
        "keypoint_categories": [],
        "videos": [],
        "images": [{"file_name": "phone.jpg", "id": 1, "height": height, "width": width, "channels": "r|g|b"}],
        "annotations": [
            {
                "image_id": 1,
                "bbox": xywh(box),
                "category_id": 1,
                "segmentation": segmentation,
                "id": 1,
                "track_id": None,
            }
        ],
    }


def roboflow(folder: Path, orientation: int) -> Any:
    """With images of its own, which it turned upright; a category of all, ids from 0."""
    (height, width), box = seen(orientation)
    with Image.open(folder / "phone.jpg") as stored:
        turned = stored.transpose(_TURNS[orientation]) if orientation in _TURNS else stored.copy()
    turned.save(folder / "phone_jpg.rf.0a1b2c3d.jpg", quality=95)
    image = {"id": 0, "license": 1, "file_name": "phone_jpg.rf.0a1b2c3d.jpg", "height": height, "width": width}
    row = {"id": 0, "image_id": 0, "category_id": 1, "bbox": xywh(box), "area": area(box), "segmentation": []}
    return {
        "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com", "contributor": ""},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "squares", "supercategory": "none"},
            {"id": 1, "name": NAME, "supercategory": "squares"},
        ],
        "images": [{**image, "date_captured": "2024-05-01T10:00:00+00:00", "extra": {"name": "phone.jpg"}}],
        "annotations": [{**row, "iscrowd": 0}],
    }


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def ignores_exif(folder: Path, orientation: int) -> Any:
    """A tool that reads images without their EXIF data: sizes and boxes as stored; Detectron2's mode of boxes."""
    image = {"id": 1, "file_name": "phone.jpg", "height": HEIGHT, "width": WIDTH}
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(STORED), "bbox_mode": 0, "iscrowd": 0}
    return {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": NAME}]}


def sam(folder: Path, orientation: int) -> Any:
    """SamAutomaticMaskGenerator's list, of an image that OpenCV read: upright."""
    size, box = seen(orientation)
    return [_sam(size, box)]


def sam_stored(folder: Path, orientation: int) -> Any:
    """The same of an image that Pillow read: as stored."""
    return [_sam((HEIGHT, WIDTH), list(STORED))]


def _sam(size: tuple[int, int], box: list[int]) -> dict[str, Any]:
    mask = {"segmentation": runs(size, box), "area": area(box), "bbox": xywh(box), "predicted_iou": 0.98}
    return {**mask, "point_coords": [box[:2]], "stability_score": 0.97, "crop_box": [0, 0, size[1], size[0]]}


def sa1b(folder: Path, orientation: int) -> Any:
    """SA-1B's file of one image, upright."""
    size, box = seen(orientation)
    image = {"image_id": 7, "width": size[1], "height": size[0], "file_name": "phone.jpg"}
    return {"image": image, "annotations": [{"id": 41, **_sam(size, box)}]}


def grounded_sam_2(folder: Path, orientation: int) -> Any:
    """Grounded-SAM-2's, which reads images without their EXIF data and writes corners."""
    row = {"class_name": NAME, "bbox": list(STORED), "segmentation": runs((HEIGHT, WIDTH), STORED), "score": [0.9]}
    top = {"image_path": "notebooks/images/phone.jpg", "annotations": [row], "box_format": "xyxy"}
    return {**top, "img_width": WIDTH, "img_height": HEIGHT}


def yolo_rows(folder: Path, orientation: int) -> Any:
    """Ultralytics' `to_json` of one image, upright as OpenCV reads it."""
    _, (x1, y1, x2, y2) = seen(orientation)
    return [{"name": NAME, "class": 0, "confidence": 0.91, "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}}]


def yolo_results(folder: Path, orientation: int) -> Any:
    """Ultralytics' predictions.json, an image by its name without ending."""
    _, box = seen(orientation)
    return [{"image_id": "phone", "file_name": "phone.jpg", "category_id": 1, "bbox": xywh(box), "score": 0.91}]


def via(folder: Path, orientation: int) -> Any:
    """VIA's project, as a browser shows the image: upright; `size` is that of the file."""
    _, (x, y, right, bottom) = seen(orientation)
    rect = {"name": "rect", "x": x, "y": y, "width": right - x, "height": bottom - y}
    region = {"shape_attributes": rect, "region_attributes": {"name": NAME}}
    entry = {"filename": "phone.jpg", "size": 4711, "regions": [region], "file_attributes": {}}
    metadata = {"phone.jpg4711": entry}
    return {"_via_settings": {"core": {}}, "_via_img_metadata": metadata, "_via_attributes": {"region": {}}}


def labelme(folder: Path, orientation: int) -> Any:
    """labelme's file of one image, upright; rectangles have their corners in the order they were drawn in."""
    (height, width), (x1, y1, x2, y2) = seen(orientation)
    shape = {"label": NAME, "points": [[x2, y2], [x1, y1]], "group_id": None, "shape_type": "rectangle", "flags": {}}
    top = {"version": "5.4.1", "flags": {}, "shapes": [{**shape, "description": "", "mask": None}]}
    return {**top, "imagePath": "phone.jpg", "imageData": None, "imageHeight": height, "imageWidth": width}


EXPORTS: dict[str, Callable[[Path, int], Any]] = {
    "labelme2coco": labelme2coco,
    "Label Studio": label_studio,
    "Label Studio, masks": label_studio_masks,
    "CVAT": cvat,
    "supervision": supervision,
    "kwcoco": kwcoco,
    "Roboflow": roboflow,
    "EXIF ignored": ignores_exif,
    "SAM": sam,
    "SAM, stored": sam_stored,
    "SA-1B": sa1b,
    "Grounded-SAM-2": grounded_sam_2,
    "YOLO rows": yolo_rows,
    "YOLO results": yolo_results,
    "VIA": via,
    "labelme": labelme,
}
