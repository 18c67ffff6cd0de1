"""Names regions of photographs by an image classifier's own head, without any training of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpt4roi.geometry.boxes import boxes_in_frame, to_rois
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.processing.images import to_pixel_values
from quickstart.parts import TOWER_MEAN, TOWER_SIZE, TOWER_STD

CELLS, SAMPLES = 4, 2
"""Cells a side of a pooled box, and samples a side of a cell: those of the light region encoder."""


class RegionClassifier:
    """Runs the last layers of a timm classifier on the cells of a box, of features of the image as a model sees it.

    The last convolution works cell by cell, and the classifier is linear after the mean over cells: both say of a box
    what they say of an image.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier.eval()
        self.stride = classifier.feature_info[-1]["reduction"]

    @torch.inference_mode()
    def probabilities(self, image: Image.Image, boxes_px: Sequence[Sequence[float]]) -> torch.Tensor:
        """Returns float[N, classes] of an RGB image's boxes, float[N, 4] xyxy in its pixels."""
        net = self.classifier
        pixels = to_pixel_values(image, "detection", TOWER_SIZE, (TOWER_MEAN,) * 3, (TOWER_STD,) * 3)[None]
        features = net.blocks(net.bn1(net.conv_stem(pixels)))
        frame = boxes_in_frame(np.asarray(boxes_px), (image.height, image.width), "detection", TOWER_SIZE)
        rois = to_rois([torch.from_numpy(frame / TOWER_SIZE).float()], (TOWER_SIZE, TOWER_SIZE))
        cells = net.bn2(net.conv_head(roi_align(features, rois, CELLS, 1 / self.stride, SAMPLES)))
        return net.classifier(cells.mean((2, 3))).softmax(-1)
