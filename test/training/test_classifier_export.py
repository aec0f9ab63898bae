"""The slice classifier that inference asks is the one that was trained, and sees what it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hemseg.kinds import ANSWERS, KINDS
from hemseg.manifest import Manifest
from hemseg.model import load_classifier
from hemseg.preprocessing import WorkingImage
from hemseg.working_grid import WorkingGrid
from training.config import Classifier, Config, Segmenter
from training.data.datasets import Prepared
from training.data.field_of_view import network_slices
from training.export.classifier import export_classifier
from training.fitting.classifier import predict
from training.fitting.kind_slices import classifier_features, head_without_regression, pooled_slices
from training.networks.slice_network import SliceNetwork

WINDOWS = ((0, 80), (-20, 100), (40, 100))
CONFIG = Config(
    "test",
    classifier=Classifier(
        backbone="resnet18",
        widths=(4, 4, 8, 8),
        output_stride=8,
        image_size=(48, 40),
        field_mm=(120, 100),
        stripped=True,
        windows=((0, 80), (-20, 100)),
    ),
    segmenter=Segmenter(min_slice_probability=0.3),
)


IMAGENET = replace(CONFIG.classifier, backbone="efficientnet_lite0", windows=WINDOWS, pretrained="imagenet")


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, classifier=IMAGENET)], ids=["resnet", "efficientnet"])
def test_the_second_opinion_is_the_trained_classifiers(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [SliceNetwork(config.classifier).eval() for _ in range(2)]
    rng = np.random.default_rng(0)
    hu = rng.uniform(-20, 100, (3, 150, 130)).astype(np.float32)
    inside = np.zeros(hu.shape, bool)
    inside[:, 40:120, 20:90] = True
    case = Prepared("head", "train", hu, inside, np.array([1, 0, 1], np.int8))
    with torch.no_grad():
        answers = [predict(network, network_slices(case, config)).sigmoid().numpy() for network in networks]
    expected = (answers[0] + answers[1]) / 2
    assert np.abs(answers[0] - answers[1]).min() > 1e-3
    named = export_classifier(networks, config, tmp_path)
    manifest = Manifest("test", "1", "none.onnx", "", (16, 48, 40), config.preprocessing, **named)
    channels = 2 * networks[0].fc.in_features
    rng = np.random.default_rng(1)
    maps, bias = (rng.normal(size=size).astype(np.float32) for size in ((len(KINDS), channels), len(KINDS)))
    classifier = load_classifier(tmp_path, manifest, head_without_regression("its sha256", maps, bias))
    assert classifier is not None
    assert manifest.min_slice_probability == 0.3
    mm = config.preprocessing.in_plane_mm
    grid = WorkingGrid(hu.shape, (5.0, mm, mm), (5.0, mm, mm), 1)
    everything = np.ones(hu.shape, np.float32)
    opinion = classifier.classify_marked(everything, 0.5, WorkingImage(hu, inside, grid), config.preprocessing)
    assert opinion.probability == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-4  # the slices do differ
    features = [predict(network, network_slices(case, config), features=True).numpy() for network in networks]
    logits = (
        np.concatenate(features, axis=1) @ maps.T + bias
    )  # of the features of both networks, averaged over the slice
    for z in range(3):
        assert opinion.kind_maps[z].mean(axis=(1, 2)) == pytest.approx(logits[z], abs=1e-4)
    manifest.write(tmp_path)
    answers, field = {"head": np.zeros((3, len(ANSWERS)), np.int8)}, manifest.classifier_field
    pooled = pooled_slices([case], answers, classifier_features(tmp_path), field, config.preprocessing.hu_range[0])
    assert pooled.features == pytest.approx(np.concatenate(features, axis=1), abs=1e-4)
