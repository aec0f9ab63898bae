"""Files that are not what they seem, each with a word of the sentence that it must get."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk


def write_faulty(folder: Path, good: Path) -> dict[str, str]:
    """Write one file of each kind below ``folder``; file name -> what its error says.

    Args:
        good: a scan to make the cut-off files from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.nii.gz").write_text("this is no scan\n")
    (folder / "empty.mha").touch()
    image = sitk.ReadImage(str(good))
    plain = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))  # without the metadata of its format
    flat, four = sitk.Image([50, 50], sitk.sitkInt16), sitk.Image([20, 20, 5, 3], sitk.sitkInt16)
    for suffix in (".nii.gz", ".mha"):
        sitk.WriteImage(flat, str(folder / f"flat{suffix}"))
        sitk.WriteImage(four, str(folder / f"four{suffix}"))
    sitk.WriteImage(sitk.Compose(plain, plain), str(folder / "vector.mha"))
    sitk.WriteImage(
        sitk.RealAndImaginaryToComplex(*[sitk.Cast(plain, sitk.sitkFloat32)] * 2), str(folder / "complex.nii")
    )
    nan = sitk.Cast(plain, sitk.sitkFloat32)
    nan[3, 3, 3] = float("nan")
    sitk.WriteImage(nan, str(folder / "nan.mha"))
    sitk.WriteImage(nan, str(folder / "nan.nii.gz"))  # ITK makes it 0
    sitk.WriteImage(plain, str(folder / "away.mhd"))
    (folder / "away.mhd").write_text((folder / "away.mhd").read_text().replace("away.raw", "../away.raw"))
    (folder / "away.raw").rename(folder.parent / "away.raw")
    said = {
        "text.nii.gz": "cannot be read",
        "empty.mha": "0 bytes",
        "vector.mha": "2 values per voxel",
        "nan.mha": "NaN",
    }
    said |= {"nan.nii.gz": "NaN", "away.mhd": "outside of its folder"}
    said |= {f"flat{s}": "2D image" for s in (".nii.gz", ".mha")} | {
        f"four{s}": "4D image" for s in (".nii.gz", ".mha")
    }
    said["complex.nii"] = "values per voxel"
    for number, (suffix, compress) in enumerate(
        [(".nii.gz", True), (".nii", False), (".mha", True), (".mha", False), (".nrrd", True), (".nrrd", False)]
    ):
        cut = folder / f"cut{number}{suffix}"
        sitk.WriteImage(plain, str(cut), compress)
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        said[cut.name] = "cut short"
    sitk.WriteImage(plain, str(folder / "cut6.mhd"))
    raw = folder / "cut6.raw"
    raw.write_bytes(raw.read_bytes()[:1000])
    sitk.WriteImage(plain, str(folder / "gone.mhd"))
    (folder / "gone.raw").unlink()
    return said | {"cut6.mhd": "cut short", "gone.mhd": "missing"}
