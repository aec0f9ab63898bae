"""Write a scan as a DICOM series.

    python test/helpers/series.py SCAN FOLDER [TRANSFER_SYNTAX_UID]

Runs inside the container, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from hemseg.scan import read
from hemseg.volume import Volume


def write_series(
    folder: Path,
    volume: Volume,
    depth: np.ndarray | None = None,
    tilt: float = 0.0,
    syntax: str = ExplicitVRLittleEndian,
    study: str = "",
    **header: object,
) -> list[Path]:
    """A phantom as a CT series.

    Args:
        depth: positions of the slices along their normal (mm); even when None.
        tilt: of the gantry, degrees: slices lean, and are shifted in their plane.
        header: values to set beside the usual ones, None to leave one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lean = np.radians(tilt)
    along_row, along_column = np.array([1.0, 0, 0]), np.array([0.0, np.cos(lean), -np.sin(lean)])
    normal = np.cross(along_row, along_column)
    mm_x, mm_y, mm_z = volume.spacing
    depth = mm_z * np.arange(len(volume.hu)) if depth is None else depth
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    written = []
    for number, (plane, at) in enumerate(zip(volume.hu, depth, strict=True), start=1):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.PatientName, ds.PatientID, ds.SeriesNumber, ds.InstanceNumber = "Phantom", "1", 2, number
        ds.ImageOrientationPatient = [*along_row, *along_column]
        # the table moves along z; with a tilt the positions are not along the normal
        position = np.array([0.0, 0.0, at / normal[2]]) if tilt else at * normal
        ds.ImagePositionPatient = [float(v) for v in position]
        ds.PixelSpacing, ds.SliceThickness = [mm_y, mm_x], mm_z
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.ConvolutionKernel = 1, -1024, "H31s"
        ds.RescaleType = "HU"
        ds.PixelData = (plane + 1024).round().astype(np.uint16).tobytes()
        for name, value in header.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        path = folder / f"{number:03}.dcm"
        ds.save_as(path, enforce_file_format=True)
        if syntax != ExplicitVRLittleEndian:
            transcode(path, syntax)
        written.append(path)
    return written


def write_enhanced(path: Path, volume: Volume, order: np.ndarray | None = None, **options: object) -> None:
    """A phantom as enhanced CT: one file, a frame a slice, in the given order; ``options`` as for `write_series`."""
    with TemporaryDirectory() as folder:
        slices = [dcmread(p) for p in write_series(Path(folder), volume, **options)]  # type: ignore[arg-type]
    slices = [slices[i] for i in (range(len(slices)) if order is None else order)]
    whole = slices[0]
    planes = np.stack([s.pixel_array for s in slices])

    def item(**values: object) -> Sequence:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return Sequence([made])

    (shared,) = whole.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence = item(PixelSpacing=whole.PixelSpacing, SliceThickness=whole.SliceThickness)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=whole.ImageOrientationPatient)
    shared.CTReconstructionSequence = item(ConvolutionKernel=whole.ConvolutionKernel)
    shared.CTImageFrameTypeSequence = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    if "RescaleSlope" in whole:
        shared.PixelValueTransformationSequence = item(
            RescaleSlope=whole.RescaleSlope, RescaleIntercept=whole.RescaleIntercept, RescaleType="HU"
        )
    frames = []
    for number, one in enumerate(slices, start=1):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=one.ImagePositionPatient)
        frame.FrameContentSequence = item(StackID="1", InStackPositionNumber=number, DimensionIndexValues=[number])
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                 "RescaleSlope", "RescaleIntercept", "ConvolutionKernel"):  # fmt: skip
        if name in whole:
            delattr(whole, name)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames, whole.PixelData = len(frames), planes.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)


def transcode(path: Path, syntax: str) -> None:
    """Rewrite a DICOM file in another transfer syntax (a UID)."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


if __name__ == "__main__":
    write_series(Path(sys.argv[2]), read(sys.argv[1]), syntax=(*sys.argv[3:], ExplicitVRLittleEndian)[0])
