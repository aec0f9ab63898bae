"""The Grand Challenge contract: which case the platform means, and where its mask belongs.

What is mounted decides the mode (`plan_run`, a pure function of what lies there); ``--mode`` overrides it:

gc          one image socket in a folder of its own, ``/input/images/ct``: ``/output/<output path>/output.mha``
gc-generic  the generic image socket, ``/input/images`` or ``/input``: ``/output/images/<same name>``, results.json
instance    INSTANCE 2022, ``/input/*.nii.gz``: ``/predict/<same name>``, nothing else
legacy      evalutils' layout, all images and DICOM below ``/input``: ``/output/images/<same name>``, results.json

The folder of a socket holds an image, or the files of a DICOM image set. HTTP calls are in
`hemseg.grand_challenge.server`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from hemseg.errors import HemsegError, first_line
from hemseg.io.formats import SUFFIXES, suffix

MODES = ("gc", "gc-generic", "instance", "legacy")
INPUTS = "inputs.json"
OUTPUT = "output.mha"  # in the folder of an output socket
RESULTS = "results.json"  # of evalutils' layout
SOCKETS = "sockets.yaml"
UNREAD = (
    ".tif",
    ".tiff",
    ".dcm",
)  # that a socket may hold and are not read: TIFF, and false DICOM
INPUTS_BYTES = 1 << 20
DICOM_KIND = "dicom image set"


@dataclass(frozen=True)
class Sockets:
    """Which sockets of the platform an algorithm reads and writes.

    Attributes:
        input_slugs: image sockets that are accepted; any single one when empty.
        output_slug: the socket of the mask.
        output_path: its relative path; ``images/<output_slug>`` when empty.
        report_path: relative path of a second output, JSON; none when empty.
        heat_map_path: relative path of an output for the probability image; none when empty.
    """

    input_slugs: tuple[str, ...] = ()
    output_slug: str = "hemorrhage-segmentation"
    output_path: str = ""
    report_path: str = ""
    heat_map_path: str = ""

    def __post_init__(self) -> None:
        mask = _relative(self.mask_path, "output_path")
        if self.heat_map_path:
            heat_map = _relative(self.heat_map_path, "heat_map_path")
            if heat_map.is_relative_to(mask) or mask.is_relative_to(heat_map):
                raise HemsegError(
                    f"heat_map_path {self.heat_map_path!r}: lies in the folder of the mask, or the mask in its; the "
                    "platform wants one image in each, give another folder."
                )
        if self.report_path and _relative(self.report_path, "report_path").suffix != ".json":
            raise HemsegError(f"report_path {self.report_path!r}: the report is JSON, its name must end in .json.")
        self.require_apart({"the mask": mask / OUTPUT})

    def require_apart(self, others: Mapping[str, PurePosixPath]) -> None:
        """Raise HemsegError where report or heat map is another output, or one lies below another, which is no folder.

        Args:
            others: the other outputs, relative to the output folder, by what a sentence calls them.
        """
        own: dict[str, PurePosixPath] = {}
        if self.report_path:
            own[f"report_path {self.report_path!r}"] = PurePosixPath(self.report_path)
        if self.heat_map_path:
            own[f"heat_map_path {self.heat_map_path!r}"] = PurePosixPath(self.heat_map_path, OUTPUT)
        for (name, path), (other, place) in itertools.combinations([*own.items(), *others.items()], 2):
            if path == place:
                why = f"is where {other} goes"
            elif path.is_relative_to(place):
                why = f"lies below {other}, and {place} is a file"
            elif place.is_relative_to(path):
                why = f"is a file, and {other} lies below it ({place})"
            else:
                continue
            raise HemsegError(f"{name}: {why}; give another path.")

    @property
    def mask_path(self) -> str:
        """The folder of the mask, relative to the output folder."""
        return self.output_path or f"images/{self.output_slug}"

    def outputs(self, target: Path) -> list[Path]:
        """Every file that a case with a socket of its own for the mask (mode ``gc``) may write below a folder."""
        images = [target / path / OUTPUT for path in (self.mask_path, self.heat_map_path) if path]
        return images + ([target / self.report_path] if self.report_path else [])


@dataclass(frozen=True)
class RunPlan:
    """What a run has to do.

    Attributes:
        scans: paths relative to the input folder.
        dicom: files of DICOM studies, likewise; of one case in the modes ``gc`` and ``gc-generic``.
    """

    mode: str
    scans: tuple[PurePosixPath, ...]
    dicom: tuple[PurePosixPath, ...] = ()


def load_sockets(environment: Mapping[str, str], weights: Path | None = None) -> Sockets:
    """Sockets from the environment, over those of a YAML file.

    ``HEMSEG_INPUT_SLUGS`` (separated by commas), ``HEMSEG_OUTPUT_SLUG``, ``HEMSEG_OUTPUT_PATH``,
    ``HEMSEG_REPORT_PATH``, ``HEMSEG_HEAT_MAP_PATH``. The file is the one that ``HEMSEG_SOCKETS`` names, else
    ``sockets.yaml`` beside the weights, if there is one; its keys are the names of `Sockets`.

    Raises:
        HemsegError: the file is missing or wrong.
    """
    named = environment.get("HEMSEG_SOCKETS", "")
    path = Path(named) if named else (weights / SOCKETS if weights else None)
    values: dict[str, Any] = {}
    if path and (named or path.is_file()):
        values = _read_sockets(path)
    for field in fields(Sockets):
        if text := environment.get(f"HEMSEG_{field.name.upper()}", ""):
            several = field.name == "input_slugs"
            values[field.name] = tuple(s.strip() for s in text.split(",") if s.strip()) if several else text
    return Sockets(**values)


def _read_sockets(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(_bounded(path)) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise HemsegError(f"{path}: cannot be read as YAML ({first_line(error)}).") from None
    known = [field.name for field in fields(Sockets)]
    if not isinstance(values, dict) or (set(values) - set(known)):
        raise HemsegError(f"{path}: holds the keys {', '.join(known)} and no others.")
    slugs = values.get("input_slugs", [])
    texts = [v for k, v in values.items() if k != "input_slugs"]
    if not isinstance(slugs, list) or not all(isinstance(v, str) for v in [*slugs, *texts]):
        raise HemsegError(f"{path}: input_slugs is a list of names, the other values are text.")
    return values | {"input_slugs": tuple(slugs)}


def read_inputs(folder: Path) -> Any:
    """What ``inputs.json`` of an input folder holds; None when there is none.

    Raises:
        HemsegError: it cannot be read as JSON, or has more than 1 MiB.
    """
    path = folder / INPUTS
    try:
        return json.loads(_bounded(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise HemsegError(f"{path}: cannot be read as JSON ({first_line(error)}).") from None


def _bounded(path: Path) -> str:
    """The text of a small file; OSError or ValueError where it is none."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        content = file.read(INPUTS_BYTES + 1)
    if len(content) > INPUTS_BYTES:
        raise ValueError(f"it has more than {INPUTS_BYTES >> 20} MiB")
    return content.decode()


def plan_run(
    files: Collection[PurePosixPath],
    inputs: Any = None,
    predict: bool = False,
    sockets: Sockets | None = None,
    mode: str = "auto",
    dicom: Collection[PurePosixPath] = (),
) -> RunPlan:
    """What is to be done, from what is mounted. A pure function.

    Args:
        files: every file below the input folder, relative to it; hidden ones are passed over.
        inputs: the contents of ``inputs.json``, or None.
        predict: whether ``/predict`` is mounted.
        sockets: which sockets are accepted.
        mode: one of `MODES`, or ``auto``.
        dicom: those of the files that are DICOM, whatever their names. In mode legacy they are studies, in the folder
            of one socket they are one case, and mode instance does not read them.

    Raises:
        HemsegError: nothing to do, or more than one thing that might be meant.
    """
    sockets = sockets or Sockets()
    seen = sorted(p for p in files if not any(part.startswith(".") for part in p.parts))
    images = [p for p in seen if suffix(Path(p))]
    if mode not in ("auto", *MODES):
        raise HemsegError(f"mode {mode!r} is not known; give one of auto, serve, {', '.join(MODES)}.")
    slices = set(dicom).difference(images)
    studies = tuple(p for p in seen if p in slices)
    if mode == "legacy":
        return _legacy(images, studies, seen)
    if mode == "instance":
        return _instance(images)
    if inputs is not None:
        if predict and mode == "auto":
            raise HemsegError(f"both /predict and {INPUTS} are there; say with --mode which is meant.")
        return _socket_case(images, studies, seen, inputs, sockets, mode)
    if mode == "auto" and predict:
        return _instance(images)
    alone = len(images) == 1 and not studies
    in_socket = alone and len(images[0].parts) == 3 and images[0].parts[0] == "images"
    if mode == "auto":
        return RunPlan("gc", tuple(images)) if in_socket else _legacy(images, studies, seen)
    if not images and len({p.parent for p in studies}) == 1:
        return RunPlan(mode, (), studies)
    if len(images) != 1:
        raise HemsegError(f"mode {mode} segments one image, but the input folder holds {len(images)}{_names(images)}.")
    return RunPlan(mode, tuple(images))


def _socket_case(
    images: list[PurePosixPath],
    studies: tuple[PurePosixPath, ...],
    seen: list[PurePosixPath],
    inputs: Any,
    sockets: Sockets,
    mode: str,
) -> RunPlan:
    named = _image_sockets(inputs)
    usable = {slug: found for slug, found in named.items() if not sockets.input_slugs or slug in sockets.input_slugs}
    if not usable:
        wanted = f" of {', '.join(sockets.input_slugs)}" if sockets.input_slugs else ""
        there = f"it names {', '.join(named)}" if named else "it names none"
        raise HemsegError(f"{INPUTS}: no image socket{wanted}; {there}.")
    if len(usable) > 1:
        raise HemsegError(
            f"{INPUTS}: several image sockets ({', '.join(usable)}); say with HEMSEG_INPUT_SLUGS which holds the CT."
        )
    ((slug, (relative, is_set)),) = usable.items()
    folder = _relative(relative, f"{INPUTS}: relative_path of {slug}") if relative else PurePosixPath()
    kind = "gc-generic" if relative in ("", "images") else "gc"
    if mode not in ("auto", kind):
        kind = mode
    here = [p for p in images if p.parent == folder]
    instances = tuple(p for p in studies if p.parent == folder)
    if instances and (is_set or not here):
        return RunPlan(kind, (), instances)
    if len(here) != 1:
        other = [p for p in seen if p.parent == folder and p.suffix.lower() in UNREAD]
        hint = f" Files such as {other[0].name} are not read." if other and not here else ""
        where = f"{folder}/" if relative else "the input folder"
        wanted = "the DICOM files of one scan" if is_set else "one image"
        raise HemsegError(f"socket {slug}: {where} should hold {wanted}, but holds {len(here)}{_names(here)}.{hint}")
    return RunPlan(kind, tuple(here))


def _image_sockets(inputs: Any) -> dict[str, tuple[str, bool]]:
    """The image sockets that ``inputs.json`` names (``socket``, else ``interface``), by slug.

    Returns:
        For each its relative path, and whether it is a DICOM image set.
    """
    if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
        raise HemsegError(f"{INPUTS}: should be a list of sockets.")
    found: dict[str, tuple[str, bool]] = {}
    for item in inputs:
        socket = item.get("socket") or item.get("interface")
        if not isinstance(socket, dict) or not isinstance(socket.get("slug"), str):
            raise HemsegError(f"{INPUTS}: an item has neither a socket nor an interface with a slug.")
        if _is_image(socket, item):
            path = socket.get("relative_path", f"images/{socket['slug']}")
            if not isinstance(path, str):
                raise HemsegError(f"{INPUTS}: relative_path of {socket['slug']} should be text.")
            if socket["slug"] in found:
                raise HemsegError(f"{INPUTS}: names the socket {socket['slug']} twice.")
            is_set = socket.get("is_dicom_image_kind") is True or str(socket.get("kind")).lower() == DICOM_KIND
            found[socket["slug"]] = (path.rstrip("/"), is_set)
    return found


def _is_image(socket: dict[str, Any], item: dict[str, Any]) -> bool:
    """The platform says it with ``super_kind``, its kit of July 2026 with ``is_image_kind``, older ones not at all."""
    kind, flag = socket.get("super_kind"), socket.get("is_image_kind")
    if isinstance(kind, str):
        return kind.lower() == "image"
    return flag if isinstance(flag, bool) else item.get("image") is not None


def _relative(text: str, what: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text:
        raise HemsegError(f"{what}: {text!r} leaves the folder it belongs to.")
    return path


def _instance(images: list[PurePosixPath]) -> RunPlan:
    scans = tuple(p for p in images if len(p.parts) == 1 and p.name.lower().endswith(".nii.gz"))
    if not scans:
        raise HemsegError("mode instance: the input folder holds no scans; it looks for *.nii.gz, without subfolders.")
    return RunPlan("instance", scans)


def _legacy(images: list[PurePosixPath], dicom: tuple[PurePosixPath, ...], seen: list[PurePosixPath]) -> RunPlan:
    if not images and not dicom:
        other = next((f" (files such as {p.name} are not read)" for p in seen if p.suffix.lower() in UNREAD), "")
        raise HemsegError(f"the input folder holds no scans; hemseg looks for {', '.join(SUFFIXES)} and DICOM{other}.")
    return RunPlan("legacy", tuple(images), dicom)


def _names(paths: list[PurePosixPath]) -> str:
    return f" ({', '.join(p.name for p in paths[:5])}{', ...' if len(paths) > 5 else ''})" if paths else ""
