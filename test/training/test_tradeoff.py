"""U-Nets of other sizes: what changes with the size, and what they learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import COARSE

from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import segment
from training.config import load_config
from training.data.datasets import Case, DataSet, prepare
from training.data.phantom import make_phantom, write_image
from training.evaluation.quality import mask_on_grid
from training.experiments.tradeoff import SIZES, Size, teacher_labels
from training.networks.unet import build_unet


def test_sizes_cover_the_same_millimetres() -> None:
    config = load_config("best")
    coarse = Size(1.5, 0.5).of(config, epochs=3)
    assert coarse.preprocessing.in_plane_mm == 1.5
    assert coarse.segmenter.channels == (8, 16, 32, 48, 64)
    assert coarse.segmenter.patch == (32, 128, 112)  # 192 and 168 mm: whole strides
    assert coarse.segmenter.train_patch == (16, 64, 64)
    assert coarse.segmenter.optimization.epochs == 3
    assert not coarse.self_training.enabled
    shipped = SIZES[0].of(config, config.segmenter.optimization.epochs)
    assert shipped.segmenter == config.segmenter
    assert shipped.preprocessing == config.preprocessing
    assert sum(p.numel() for p in build_unet(coarse.segmenter, 2).parameters()) < 0.3 * sum(
        p.numel() for p in build_unet(shipped.segmenter, 2).parameters()
    )


def test_labels_are_the_teachers_on_positive_slices_alone(tmp_path: Path, model: Model) -> None:
    """Slices labelled negative are empty whatever the teacher says; positive ones without an outline do not count."""
    phantom = make_phantom(3, ("intraparenchymal",), COARSE)
    write_image(phantom.volume.hu, phantom.volume, tmp_path / "a.nii.gz")
    volume = read(tmp_path / "a.nii.gz")
    settings = Size(1.5, 1.0).of(load_config("best"), 1).preprocessing
    found = mask_on_grid(volume, segment(volume, model).mask, settings)
    hit = np.flatnonzero(found.any(axis=(1, 2)))
    labels = np.zeros(len(found), int)
    labels[hit[1:]] = 1  # the lowest slice with blood is called negative
    labels[0] = 1  # and one without is called positive
    upwards = volume.cosines[2, 2] > 0
    in_file = tuple(int(v) for v in (labels if upwards else labels[::-1]))
    dataset = DataSet("one", (Case("a", tmp_path / "a.nii.gz", "train", in_file, None),))
    prepared, out = tmp_path / "prepare", tmp_path / "labels"
    prepared.mkdir()
    out.mkdir()
    prepare(dataset, settings, prepared)
    figures = teacher_labels(dataset, model, settings, prepared, out)
    with np.load(out / "a.npz") as saved:
        assert np.array_equal(saved["mask"][hit[1:]], found[hit[1:]])
        assert not saved["mask"][labels == 0].any()
        assert list(np.flatnonzero(saved["left_out"])) == [0]
        assert figures == {"voxels": int(saved["mask"].sum()), "left_out": 1}
