"""``manifest.json``: all that inference must know about a model, and nowhere else; and where weights are found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hemseg.errors import HemsegError, first_line
from hemseg.io.files import write_text
from hemseg.manifest_values import check_values
from hemseg.preprocessing import Settings

FORMAT = 11  # of the manifest; raised when an older hemseg could misread a newer one
MANIFEST = "manifest.json"
PLATFORM_MODEL = Path("/opt/ml/model")  # where Grand Challenge unpacks a model tarball
DEFAULT_POINT = "balanced"
LEFT_OUT = ("kinds_network_file", "kinds_network_sha256")  # empty in all weights that were published (formats 7 to 9)
POINT_KEYS = (  # what an operating point may set
    "threshold",
    "outline_threshold",
    "min_peak",
    "min_lesion_ml",
    "min_slice_probability",
)


@dataclass(frozen=True)
class Manifest:
    """What inference must know.

    Attributes:
        name, version: of the weights.
        file: the ONNX file beside the manifest. Input ``image`` float32 (n, channel, z, y, x), output
            ``probability`` of hemorrhage, float32 (n, 1, z, y, x): the sigmoid is inside the graph.
        sha256: of that file.
        patch: (z, y, x) voxels of the working grid that the network takes at once.
        preprocessing: see `hemseg.preprocessing.Settings`.
        threshold: probability from which a voxel is hemorrhage.
        outline_threshold: where it is higher, a lesion's outline lies at this probability (`hemseg.outline`; format 9);
            0: at ``threshold``.
        outline_ml: of lesions of which so much reaches it; others keep the outline at ``threshold``.
        min_lesion_ml: smaller connected components are dropped.
        min_peak: connected components whose highest probability stays below it are dropped (format 2).
        max_median_hu: connected components with a higher median of the scan's HU are dropped: clotted blood stays
            below about 100 HU, calcifications and metal do not (the median, as a subdural bleed's border is half
            bone); 0 for no limit (format 3).
        strip_file, strip_sha256: the ONNX file of the learned skull strip (`hemseg.strip`) beside the manifest; '' for
            the paper's steps (format 4).
        license: under which the weights may be used (format 5).
        operating_points: other values of `POINT_KEYS` by name, such as ``sensitive`` (format 6); see `at`.
        operating_point: the name of the values above.
        range_thresholds: low and high, at which the probability is cut for the volume's range
            (`hemseg.volume_range`; format 6).
        range_margin: share by which either end of that range is widened. Its default is for weights that were not
            calibrated.
        kinds_file, kinds_sha256: the numbers that name kinds of hemorrhage (`hemseg.kinds.KindHead`), beside the
            manifest; '' for weights that name none (format 7).
        classifier_file, classifier_sha256: the ONNX file of the slice classifier that gives a second opinion
            (`hemseg.second_opinion`); '' for none. Input ``slices`` float32 (n, y, x) in HU, output ``probability`` of
            hemorrhage in the slice, float32 (n,) (format 8), and, where kinds are read off them, ``features``, float32
            (n, channel, y', x').
        classifier_field: (y, x) voxels of the working grid that it sees.
        min_slice_probability: connected components are dropped where that probability stays below it in all their
            main slices; 0: nobody asks (format 8).
        doubt_slice_probability: a slice in which the U-Net reaches ``threshold`` but nothing is left standing is named
            as doubtful where that probability reaches this; 0: none is (format 10).
        flips: each patch is also shown mirrored left to right, and the probability is the mean of both answers
            (format 11).
        provenance: how the weights came about (data, recipe, seed, commit, metrics); not read by inference.
    """

    name: str
    version: str
    file: str
    sha256: str
    patch: tuple[int, int, int]
    preprocessing: Settings
    threshold: float = 0.5
    outline_threshold: float = 0.0
    outline_ml: float = 0.5
    min_lesion_ml: float = 0.1
    min_peak: float = 0.0
    max_median_hu: float = 0.0
    strip_file: str = ""
    strip_sha256: str = ""
    license: str = "MIT"
    operating_points: dict[str, dict[str, float]] = field(default_factory=dict)
    operating_point: str = DEFAULT_POINT
    range_thresholds: tuple[float, float] = (0.2, 0.8)
    range_margin: float = 0.25
    kinds_file: str = ""
    kinds_sha256: str = ""
    classifier_file: str = ""
    classifier_sha256: str = ""
    classifier_field: tuple[int, int] = (0, 0)
    min_slice_probability: float = 0.0
    doubt_slice_probability: float = 0.0
    flips: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into a folder, all or nothing."""
        write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", folder / MANIFEST)

    def at(self, point: str) -> Manifest:
        """The same weights at another operating point; '' is the present one.

        Raises:
            HemsegError: these weights have no such point.
        """
        if point in ("", self.operating_point):
            return self
        if point not in self.operating_points:
            known = ", ".join(dict.fromkeys((self.operating_point, *self.operating_points)))
            raise HemsegError(f"operating point {point!r}: {self.name} has none of that name; give {known}.")
        return dataclasses.replace(self, **self.operating_points[point], operating_point=point)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises HemsegError: missing, not JSON, made for a newer hemseg, or with fields missing or wrong."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise HemsegError(f"{path}: there is no such file; give --weights a folder with a {MANIFEST}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise HemsegError(f"{path}: cannot be read as a manifest ({first_line(error)}).") from None
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise HemsegError(f"{path}: is not a hemseg manifest.")
        if values["format"] > FORMAT:
            raise HemsegError(
                f"{path}: has format {values['format']}, this hemseg reads up to {FORMAT}; update hemseg."
            )
        try:
            settings = Settings(**{k: _as_tuple(v) for k, v in values.pop("preprocessing").items()})
            if any(values.pop(name, "") for name in LEFT_OUT):
                raise ValueError(f"{LEFT_OUT[0]} names a network that this hemseg does not read")
            manifest = cls(preprocessing=settings, **{k: _as_tuple(v) for k, v in values.items()})
            check_values(manifest)
            if manifest.min_slice_probability and not manifest.classifier_file:
                raise ValueError("min_slice_probability needs classifier_file")
            if manifest.doubt_slice_probability and not manifest.min_slice_probability:
                raise ValueError("doubt_slice_probability needs min_slice_probability")
            for name, values in manifest.operating_points.items():
                if not isinstance(values, dict) or not values or set(values) - set(POINT_KEYS):
                    raise ValueError(f"operating_points.{name} should set some of {', '.join(POINT_KEYS)}")
                check_values(manifest.at(name), f"operating_points.{name}.")
            return manifest
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HemsegError(f"{path}: is not a valid manifest ({error}).") from None


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def default_weights() -> Path:
    """The weights used when none are named: the platform's model tarball, else those that came with hemseg."""
    package = Path(__file__).parent
    own = (package.parent / "weights", package / "weights")  # in a clone and in the container; in a wheel
    for folder in (PLATFORM_MODEL, *own):
        if (folder / MANIFEST).is_file():
            return folder
    raise HemsegError(f"no weights found in {', '.join(map(str, (PLATFORM_MODEL, *own)))}; give --weights FOLDER.")
