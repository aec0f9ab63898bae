"""The pictures of the README are made by one command."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

from hemseg.errors import HemsegError
from training.evaluation.pictures import write_pictures


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_pictures_are_of_pages_that_show_something(light: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, ROOT / "test" / "cases", light)
    for name, shape in (("result", (964, 1200)), ("report", (900, 1300)), ("compare", (900, 1300))):
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        assert picture is not None
        assert picture.shape[:2] == shape
        assert picture.max() > 200
        red = (picture[..., 2].astype(int) - np.maximum(picture[..., 0], picture[..., 1])) > 60  # an outline, bars
        assert red.sum() > 100


def test_what_is_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "chromium")
    with pytest.raises(HemsegError, match="training samples"):
        write_pictures(tmp_path, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(HemsegError, match="chromium is not installed"):
        write_pictures(tmp_path, ROOT / "test" / "cases")
