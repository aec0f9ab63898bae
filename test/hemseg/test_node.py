"""The DICOM node: pynetdicom plays the scanner and the archive, in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from helpers.series import write_series
from pydicom.uid import MRImageStorage, generate_uid

from hemseg.errors import HemsegError
from hemseg.model import Model, load
from hemseg.node.peers import Peer, ae_title, may_call, parse_caller, parse_destination
from hemseg.node.study_queue import FAILED, INCOMING, MAX_ATTEMPTS, SEGMENTING, SENDING, WAITING, StudyQueue
from training.data.phantom import Phantom

pytest.importorskip("pynetdicom", reason="the extra [node] is not installed")

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from hemseg.node.receiver import DISCARDED, MISMATCH, SUCCESS
from hemseg.node.sender import FIRST_PAUSE, Sender
from hemseg.node.service import Node, Settings


def test_peers_are_read() -> None:
    assert parse_destination("pacs:4242:ORTHANC") == Peer("ORTHANC", "pacs", 4242)
    assert parse_destination("[::1]:104:A B") == Peer("A B", "::1", 104)
    assert parse_caller("CT 1@10.0.0.7") == Peer("CT 1", "10.0.0.7")
    for wrong in (
        "pacs:4242",
        "pacs:0:A",
        "pacs:70000:A",
        "pacs:4242:" + 17 * "A",
        "pacs:4242:A\\B",
        ":1:A",
        "::1:104:A",
    ):
        with pytest.raises(HemsegError):
            parse_destination(wrong)
    for wrong in ("CT", "@host", "CT@", "C\nT@host"):
        with pytest.raises(HemsegError):
            parse_caller(wrong)
    assert ae_title("HEMSEG  ", "--ae-title") == "HEMSEG"


def test_who_may_call() -> None:
    allowed = [Peer("CT", "127.0.0.1"), Peer("PACS", "localhost"), Peer("LOST", "no-such-host.invalid")]
    assert may_call("CT ", "127.0.0.1", allowed)
    assert may_call("PACS", "::ffff:127.0.0.1", allowed)
    assert not may_call("CT", "127.0.0.2", allowed)
    assert not may_call("MR", "127.0.0.1", allowed)
    assert not may_call("LOST", "127.0.0.1", allowed)
    assert not may_call("CT", "", allowed)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_study_goes_through_the_queue(tmp_path: Path) -> None:
    clock = Clock()
    queue = StudyQueue(tmp_path / "queue", 30, clock)
    first = queue.add("1.2", "1.2.1", b"a")
    clock.now = 20
    assert queue.add("1.2", "1.2.2", b"b") is first
    assert queue.add("1.2", "1.2.2", b"bb") is first  # sent twice
    assert (first.number, first.count, first.size) == (1, 2, 3)
    other = queue.add("1.3", "1.3.1", b"c")
    clock.now = 49
    assert queue.queue_quiet_studies() == []
    clock.now = 50
    assert queue.queue_quiet_studies() == [first, other]
    queue.add("1.2", "1.2.3", b"late")
    assert [case.number for case in queue.cases(INCOMING)] == [1]
    assert queue.start_next() is not None  # the other one
    assert queue.start_next() is None
    clock.now = 90
    queue.queue_quiet_studies()
    case, files = queue.start_next() or pytest.fail("nothing waits")
    assert (case.number, len(files), case.state) == (1, 3, SEGMENTING)
    queue.add("1.2", "1.2.4", b"later")
    assert not queue.finish(case, files)  # made without the last one
    clock.now = 130
    queue.queue_quiet_studies()
    case, files = queue.start_next() or pytest.fail("nothing waits")
    assert queue.finish(case, files)
    (queue.path(case) / "results").mkdir()
    late = queue.add("1.2", "1.2.5", b"much later")  # with the images that are still there
    assert (late.number, late.count) == (3, 5)
    queue.remove(case)
    assert "1.2" not in " ".join(str(path) for path in (tmp_path / "queue").rglob("*"))
    assert oct((tmp_path / "queue").stat().st_mode)[-3:] == "700"


def test_the_queue_survives_the_process(tmp_path: Path) -> None:
    queue = StudyQueue(tmp_path, 0)
    for study in ("1", "2", "3"):
        queue.add(study, f"{study}.1", b"image")
    queue.queue_quiet_studies()
    case, files = queue.start_next() or pytest.fail("nothing waits")
    assert queue.finish(case, files)
    queue.start_next()
    (tmp_path / INCOMING / "000004-0123456789abcdef").mkdir()  # ended before its first image was there
    for attempt in range(1, MAX_ATTEMPTS):
        queue = StudyQueue(tmp_path, 0)  # the process was killed in the middle of the second study
        assert [case.number for case in queue.cases(SENDING)] == [1]
        assert [case.number for case in queue.cases(WAITING)] == [2, 3]
        assert (queue.start_next() or pytest.fail("nothing waits"))[0].number == 2, attempt
    queue = StudyQueue(tmp_path, 0)
    assert (queue.start_next() or pytest.fail("nothing waits"))[0].number == 3  # the second one is given up
    (failed,) = queue.cases(FAILED)
    assert "begun 3 times" in (queue.path(failed) / "reason.txt").read_text()
    assert queue.images(failed)
    queue.remove(queue.cases(SENDING)[0])
    queue.remove(queue.cases(SEGMENTING)[0])
    assert StudyQueue(tmp_path, 0).add("9", "9.1", b"image").number == 4  # a number is given once


# ----------------------------------------------------------------------------------------------------------------------


class Archive:
    """A PACS that keeps what it gets, in memory; it may be told to answer with a status."""

    def __init__(self) -> None:
        self.got: list[pydicom.Dataset] = []
        self.status = 0
        entity = AE(ae_title="PACS")
        entity.supported_contexts = AllStoragePresentationContexts
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.port = self._server.server_address[1]

    def _store(self, event: evt.Event) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.got.append(dataset)
        return self.status

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture(scope="module")
def light_model(light: Path) -> Model:
    return load(light, "cpu")


@pytest.fixture
def archive() -> Iterator[Archive]:
    made = Archive()
    yield made
    made.close()


@pytest.fixture
def node(archive: Archive, light_model: Model, tmp_path: Path) -> Iterator[Node]:
    settings = Settings(
        "HEMSEG", ("127.0.0.1", 0), Peer("PACS", "127.0.0.1", archive.port), (Peer("CT", "127.0.0.1"),),
        tmp_path / "queue", quiet_seconds=0,
    )  # fmt: skip
    made = Node(settings, light_model)
    made.receiver.start()
    yield made
    made.receiver.stop()


@pytest.fixture(scope="module")
def studies(bleed: Phantom, tmp_path_factory: pytest.TempPathFactory) -> list[list[pydicom.Dataset]]:
    folder = tmp_path_factory.mktemp("studies")
    return [
        [
            pydicom.dcmread(path)
            for path in write_series(folder / name, bleed.volume, PatientName=f"Secret^{name}", PatientID=f"ID-{name}")
        ]
        for name in ("Ann", "Bob")
    ]


def call(node: Node, title: str = "CT", called: str = "HEMSEG") -> object:
    entity = AE(ae_title=title)
    entity.add_requested_context(Verification)
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2")
    entity.add_requested_context(MRImageStorage)
    return entity.associate("127.0.0.1", node.receiver.port, ae_title=called)


def push(node: Node, images: list[pydicom.Dataset]) -> list[int]:
    association = call(node)
    answers = [association.send_c_store(image).Status for image in images]
    association.release()
    return answers


def test_studies_in_results_out(
    node: Node, archive: Archive, studies: list[list[pydicom.Dataset]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers: list[list[int]] = []
    senders = [threading.Thread(target=lambda s=s: answers.append(push(node, s))) for s in studies]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert answers == [[SUCCESS] * 16] * 2
    assert node.step()
    assert node.step()
    assert not node.step()
    assert node.sender.send_due() == 2
    objects = {study: [o for o in archive.got if o.StudyInstanceUID == study] for study in
               (images[0].StudyInstanceUID for images in studies)}  # fmt: skip
    for images, got in zip(studies, objects.values(), strict=True):
        assert sorted(o.Modality for o in got) == ["SEG", "SR"]
        segmentation = next(o for o in got if o.Modality == "SEG")
        assert segmentation.pixel_array.any()
        referred = {i.ReferencedSOPInstanceUID for s in segmentation.ReferencedSeriesSequence
                    for i in s.ReferencedInstanceSequence}  # fmt: skip
        assert referred == {image.SOPInstanceUID for image in images}
    assert list(node.settings.queue.rglob("*.dcm")) == []  # nothing of the patients is left
    said = caplog.text
    assert "case 1: complete, 16 files" in said
    assert not [word for word in ("Secret", "Ann", "Bob", "ID-", studies[0][0].StudyInstanceUID) if word in said]


def test_strangers_are_refused(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    association = call(node)
    assert association.is_established
    assert association.send_c_echo().Status == SUCCESS
    association.release()
    assert call(node, title="MR").is_rejected
    assert call(node, called="OTHER").is_rejected
    assert "refused: 'MR' at 127.0.0.1" in caplog.text


def test_what_is_no_ct_is_passed_over(
    node: Node, archive: Archive, studies: list[list[pydicom.Dataset]], caplog: pytest.LogCaptureFixture
) -> None:
    other = pydicom.dcmread(studies[0][0].filename)
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = MRImageStorage
    other.Modality = "MR"
    caplog.set_level(logging.INFO)
    assert push(node, [other, other]) == [DISCARDED] * 2
    assert caplog.text.count("what is not CT is passed over") == 1
    assert not node.step()
    localizer = pydicom.dcmread(studies[0][0].filename)
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.StudyInstanceUID = generate_uid()
    assert push(node, [localizer]) == [SUCCESS]
    assert node.step()
    assert [case.number for case in node.queue.cases(FAILED)] == [1]
    assert "case 1: nothing is sent back" in caplog.text
    assert "Secret" not in caplog.text
    assert node.sender.send_due() == 0
    assert archive.got == []
    nameless = pydicom.dcmread(studies[0][0].filename)
    nameless.StudyInstanceUID = ""
    assert push(node, [nameless]) == [MISMATCH]


def test_results_are_kept_until_they_are_taken(
    node: Node, archive: Archive, studies: list[list[pydicom.Dataset]], caplog: pytest.LogCaptureFixture
) -> None:
    push(node, studies[0])
    assert node.step()
    clock = Clock()
    sender = Sender(node.queue, "HEMSEG", Peer("PACS", "127.0.0.1", archive.port), clock)
    archive.status = 0xA700
    assert sender.send_due() == 0
    assert "answers 0xA700 to SEG; again in 10 seconds" in caplog.text
    archive.status = 0
    assert sender.send_due() == 0  # it waits
    clock.now = FIRST_PAUSE
    nowhere = Sender(node.queue, "HEMSEG", Peer("PACS", "127.0.0.1", 9), clock)
    assert nowhere.send_due() == 0
    assert "cannot be reached; again in 10 seconds" in caplog.text
    assert sender.send_due() == 1
    assert archive.got[0].Modality == "SEG"
    assert not node.queue.cases(SENDING)


@pytest.mark.parametrize("limit", ["MAX_INSTANCE_BYTES", "MAX_PDU_BYTES"])
def test_too_much_is_hung_up_on(
    limit: str, node: Node, monkeypatch: pytest.MonkeyPatch, studies: list[list[pydicom.Dataset]]
) -> None:
    monkeypatch.setattr("hemseg.node.receiver.MAX_PDU_BYTES", 20_000)
    association = call(node)
    assert association.send_c_store(studies[0][0]).Status == SUCCESS  # 18 kB of pixels, 16 kB in a PDU
    assert association.send_c_store(studies[0][1]).Status == SUCCESS  # the limit is that of a message
    association.release()
    monkeypatch.setattr(f"hemseg.node.receiver.{limit}", 10_000)
    association = call(node)
    assert "Status" not in association.send_c_store(studies[0][2])
    assert node.queue.cases(INCOMING)[0].count == 2
