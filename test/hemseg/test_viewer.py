"""report.html and summary.html in a real browser, headless Chromium, offline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT

from hemseg.folder.journal import Journal
from hemseg.folder.plan import OutputOptions, plan_jobs
from hemseg.folder.processes import run_in_this_process
from hemseg.folder.rows import settings_key
from hemseg.kinds import Kind
from hemseg.model import Model, load
from hemseg.report.findings import findings
from hemseg.report.viewer import write_page
from hemseg.scan import read
from hemseg.segmentation import segment
from training.data.phantom import Phantom

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
NASTY = "<script>document.title='broken'<!--.nii.gz"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """Reports and the summary of a folder with a bleed, a healthy head and a nasty name."""
    folder = tmp_path_factory.mktemp("scans")
    shutil.copy(ROOT / "test" / "cases" / "phantom-intraparenchymal.nii.gz", folder / "bleed.nii.gz")
    shutil.copy(ROOT / "test" / "cases" / "phantom-healthy.nii.gz", folder / NASTY)
    out = tmp_path_factory.mktemp("out")
    jobs = plan_jobs(folder, out, OutputOptions(report=True))
    journal = Journal(out)
    journal.start([])
    assert settings_key(model.manifest)
    for row in run_in_this_process(jobs, model, out):
        journal.add(row)
    journal.finish(jobs)
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
        f"--disable-component-update --disable-dev-shm-usage --window-size=1300,900 --user-data-dir={profile}"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, path: Path) -> Any:
    """Open a page; it must neither complain nor ask for anything over a network."""
    browser.get_log("performance")
    browser.get(path.as_uri())
    settled(browser)
    return browser


def settled(browser: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.readyState") == "complete")


def requests(browser: Any) -> list[str]:
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    ours = [s for s in sent if not s["documentURL"].startswith("chrome:")]  # the start page may still be loading
    return [url for s in ours if not (url := s["request"]["url"]).startswith(("file:", "data:"))]


def pixels(browser: Any) -> str:
    return browser.execute_script("return document.querySelector('canvas').toDataURL()")


def shows(browser: Any, number: int) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.body.dataset.slice") == str(number))


def test_a_page_opens_at_a_doubtful_slice(browser: Any, tmp_path: Path, model: Model) -> None:
    from selenium.webdriver.common.by import By

    healthy = segment(read(ROOT / "test" / "cases" / "phantom-healthy.nii.gz"), model)
    doubtful = replace(healthy, mask=np.zeros_like(healthy.mask), lesions=(), kinds=(), doubtful_slices=(4, 7, 8))
    write_page(doubtful, findings(doubtful, model, "doubtful"), tmp_path / "report.html")
    opened(browser, tmp_path / "report.html")
    shows(browser, 7)
    assert browser.find_element(By.ID, "where").text.endswith("0.0 cm², doubtful")
    bar = browser.find_element(By.ID, "doubtful")
    buttons = bar.find_elements(By.TAG_NAME, "button")
    assert [button.text for button in buttons] == ["5", "8", "9"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#plot .doubtful")) == 3
    assert "nothing outlined, doubtful: slices 5, 8-9" in browser.find_element(By.TAG_NAME, "body").text
    buttons[0].click()
    shows(browser, 4)
    assert browser.get_log("browser") == []


def test_slices_of_the_table_are_those_of_the_pictures(browser: Any, tmp_path: Path, model: Model) -> None:
    """Also where the file begins at the vertex."""
    scan = sitk.ReadImage(ROOT / "test" / "cases" / "phantom-intraparenchymal.nii.gz")
    sitk.WriteImage(sitk.Flip(scan, (False, False, True)), tmp_path / "scan.nii.gz")
    result = segment(read(tmp_path / "scan.nii.gz"), model)
    write_page(result, findings(result, model, "case"), tmp_path / "report.html")
    opened(browser, tmp_path / "report.html")
    areas = browser.execute_script("return data.area_cm2")
    cells = browser.execute_script("return [...document.querySelectorAll('tr[data-slice]')].map(r => r.innerText)")
    shown = [z + 1 for z, area in enumerate(areas) if area]
    assert len(result.lesions) == len(cells) == 1
    assert f"{shown[0]}–{shown[-1]}" in cells[0]  # noqa: RUF001
    first, last = result.lesions[0].slices
    assert (first + 1, last + 1) != (shown[0], shown[-1])
    assert (len(areas) - last, len(areas) - first) == (shown[0], shown[-1])


def test_report(browser: Any, pages: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, pages / "bleed" / "report.html")
    report = json.loads((pages / "bleed" / "report.json").read_text())
    text = browser.find_element(By.TAG_NAME, "body").text
    assert f"{report['volume_ml']:.1f} mL" in text
    assert "Not a medical device" in text
    first = int(browser.execute_script("return data.area_cm2.indexOf(Math.max(...data.area_cm2))"))
    shows(browser, first)  # it begins where there is most blood

    with_mask = pixels(browser)
    keys = ActionChains(browser)
    keys.send_keys("m").perform()
    assert browser.find_element(By.ID, "mask").get_attribute("aria-pressed") == "false"
    wait_for_change(browser, with_mask)
    without = pixels(browser)
    browser.find_element(By.ID, "mask").click()
    wait_for_change(browser, without)
    assert pixels(browser) == with_mask

    canvas = browser.find_element(By.TAG_NAME, "canvas")
    shown = browser.find_element(By.ID, "hu")
    assert shown.text == ""
    ActionChains(browser).move_to_element_with_offset(canvas, -canvas.size["width"] // 2 + 3, 0).perform()
    assert shown.text == "-1000 HU"  # air beside the head
    hu, (_, _, mm) = read(ROOT / "test" / "cases" / "phantom-intraparenchymal.nii.gz").in_lps()
    ActionChains(browser).move_to_element(canvas).perform()
    middle = hu[first, hu.shape[1] // 2 - 4 : hu.shape[1] // 2 + 4, hu.shape[2] // 2 - 4 : hu.shape[2] // 2 + 4]
    assert middle.min() - 1 <= int(shown.text.split()[0]) <= middle.max() + 1
    ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, -100).perform()
    shows(browser, first + 1)
    assert pixels(browser) != with_mask
    ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
    shows(browser, first)
    assert pixels(browser) == with_mask
    one = next(line for line in browser.execute_script("return data.lines") if line["name"] == "A")
    lesion = report["lesions"][0]
    assert one["cm"] == pytest.approx(lesion["abc_cm"][0], abs=0.06)
    assert abs(one["slice"] - first) <= 3
    (ax, ay), (bx, by) = one["ends"]
    across = browser.execute_script("return data.size[0]") / hu.shape[2]
    assert np.hypot(ax - bx, ay - by) / across * mm == pytest.approx(lesion["abc_cm"][0] * 10, rel=0.02)
    browser.find_element(By.CSS_SELECTOR, "tr[data-slice]").click()
    shows(browser, one["slice"])
    with_lines = pixels(browser)
    ActionChains(browser).send_keys("a").perform()
    wait_for_change(browser, with_lines)
    without_lines = pixels(browser)
    assert browser.find_element(By.ID, "abc").get_attribute("aria-pressed") == "false"
    ActionChains(browser).send_keys("p").perform()  # the probability as heat
    wait_for_change(browser, without_lines)
    assert browser.find_element(By.ID, "heat").get_attribute("value") == "60"
    x, y = (int(v) for v in np.mean(one["ends"], axis=0))
    red, green, blue = browser.execute_script(f"return [...pen.getImageData({x}, {y}, 1, 1).data].slice(0, 3)")
    assert min(red, green) > blue + 60  # certain: yellow
    scale = canvas.size["width"] / browser.execute_script("return data.size[0]")
    ActionChains(browser).move_to_element_with_offset(
        canvas, round(x * scale - canvas.size["width"] / 2), round(y * scale - canvas.size["height"] / 2)
    ).perform()
    assert 0.9 <= float(shown.text.split(", ")[1]) <= 1
    browser.execute_script("heat.value = 20; heat.dispatchEvent(new Event('input'))")
    ActionChains(browser).send_keys("p").perform()
    WebDriverWait(browser, 20).until(lambda b: pixels(b) == without_lines)
    for key in "23":
        before = pixels(browser)
        ActionChains(browser).send_keys(key).perform()
        wait_for_change(browser, before)
    ActionChains(browser).send_keys(Keys.HOME).perform()
    shows(browser, 0)
    browser.find_element(By.CSS_SELECTOR, "tr[data-slice]").click()
    shows(browser, int(browser.find_element(By.CSS_SELECTOR, "tr[data-slice]").get_attribute("data-slice")))
    assert abs(int(browser.execute_script("return document.body.dataset.slice")) - first) <= 3
    assert requests(browser) == []
    assert browser.get_log("browser") == []


def wait_for_change(browser: Any, before: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: pixels(b) != before)


def test_kinds_have_colours_that_can_be_switched_off(browser: Any, light: Path, bleed: Phantom, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    model = load(light, "cpu", 1)
    plain = segment(bleed.volume, model)
    result = replace(plain, kinds=(Kind("subdural", 0.75),) + (Kind("unsure", 0.3),) * (len(plain.lesions) - 1))
    pictures = {}
    for name, one in (("plain", plain), ("kinds", result)):
        write_page(one, findings(one, model, name), tmp_path / f"{name}.html")
        opened(browser, tmp_path / f"{name}.html")
        shows(browser, int(browser.execute_script("return data.lines[0].slice")))
        pictures[name] = pixels(browser)
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "subdural (0.75)" in text
    assert "subdural" in browser.find_element(By.ID, "legend").text
    ActionChains(browser).send_keys("k").perform()
    wait_for_change(browser, pictures["kinds"])
    assert pixels(browser) == pictures["plain"]  # red, as without kinds
    assert not browser.find_element(By.ID, "legend").is_displayed()
    browser.find_element(By.ID, "kinds").click()
    wait_for_change(browser, pictures["plain"])
    assert pixels(browser) == pictures["kinds"]
    opened(browser, tmp_path / "plain.html")
    assert not browser.find_element(By.ID, "kinds").is_displayed()
    assert browser.get_log("browser") == []


def test_names_cannot_break_a_page(browser: Any, pages: Path) -> None:
    opened(browser, pages / NASTY.removesuffix(".nii.gz") / "report.html")
    assert browser.title == f"hemseg: {NASTY}"
    assert browser.execute_script("return document.querySelectorAll('script').length") == 1
    opened(browser, pages / "summary.html")
    assert browser.title == f"hemseg: {pages.name}"
    assert browser.get_log("browser") == []


def test_summary_sorts_and_links(browser: Any, pages: Path) -> None:
    from selenium.webdriver.common.by import By

    opened(browser, pages / "summary.html")
    volume = next(b for b in browser.find_elements(By.CSS_SELECTOR, "th button") if "volume" in b.text)

    def order() -> list[float]:
        return [float(c.text) for c in browser.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")]

    volume.click()
    down = order()
    volume.click()
    assert down == sorted(down, reverse=True)
    assert order() == sorted(down)
    assert all(browser.execute_script("return [...document.images].map(i => i.naturalWidth > 0)"))
    browser.find_element(By.LINK_TEXT, "bleed.nii.gz").click()
    settled(browser)
    assert browser.title == "hemseg: bleed.nii.gz"
    assert requests(browser) == []


def test_compare_page(browser: Any, bleed: Phantom, model: Model, tmp_path: Path) -> None:
    """Both scans side by side, slices linked; a lesion that grew and one that is new."""
    import SimpleITK as sitk
    from scipy import ndimage
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from hemseg.compare.change import Change, LesionPair, numbered_lesions
    from hemseg.compare.comparison import Comparison, MeasuredScan
    from hemseg.compare.page import page
    from hemseg.compare.registration import Registration
    from hemseg.compare.tables import comparison_report

    before = bleed.mask
    after = ndimage.binary_dilation(before, np.ones((1, 3, 3))).astype(np.uint8)
    after[4:6, 40:46, 60:66] = 1
    volume = bleed.volume
    sides = [
        MeasuredScan(volume, mask, *numbered_lesions(mask, volume.voxel_ml), given=True) for mask in (before, after)
    ]
    one, two = (side.volume_ml for side in sides)
    (a,), (b, c) = (side.lesions_ml for side in sides)
    comparison = Comparison(
        *sides,
        registration=Registration(sitk.Euler3DTransform(), 0.97, 0.95, 0.98),
        change=Change(one, two),
        lesions=[LesionPair((0,), (0,), a, b), LesionPair((), (1,), 0.0, c)],
        hours=26.04,
        limits=None,
        warnings=("<b>odd</b>",),
    )
    path = tmp_path / "compare.html"
    path.write_text(page(comparison, comparison_report(comparison, model, NASTY)))
    opened(browser, path)
    assert browser.title == f"hemseg compare: {NASTY}"
    text = browser.find_element(By.TAG_NAME, "body").text
    for said in (f"{one:.1f} mL → {two:.1f} mL", "26.0 hours", "expansion", "<b>odd</b>", "Not a medical device"):
        assert said in text

    def drawn() -> str:
        return str(browser.execute_script("return document.body.dataset.drawn"))

    def shown(state: str) -> list[str]:
        WebDriverWait(browser, 20).until(lambda _: drawn() == state)
        return browser.execute_script("return views.map(view => view.toDataURL())")

    total = (before + after).sum(axis=(1, 2))
    first = int(total.argmax())
    both = shown(f"{first} brain true true false")
    assert both[0] == both[1]  # one scan on either side, with the outlines of both
    keys = ActionChains(browser)
    keys.send_keys("f").perform()
    without = shown(f"{first} brain true false false")
    keys = ActionChains(browser)
    keys.send_keys("c").perform()
    changed = shown(f"{first} brain true false true")
    assert len({both[0], without[0], changed[0]}) == 3
    red = browser.execute_script(
        "const p = pens[1].getImageData(0, 0, width, height).data; let n = 0;"
        "for (let i = 0; i < p.length; i += 4) n += p[i] > p[i + 1] + 30 && p[i] > p[i + 2] + 30; return n"
    )
    assert red == (after[first] > before[first]).sum()
    browser.find_element(By.CSS_SELECTOR, "tr.new").click()
    shown("4 brain true false true")
    ActionChains(browser).send_keys(Keys.ARROW_UP, "3").perform()
    shown("5 bone true false true")
    assert requests(browser) == []
    assert browser.get_log("browser") == []
