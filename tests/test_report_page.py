"""The report's page in a real browser: Chromium, without a window."""

import json
import shutil

import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import benchmarks.page
import report_utilities
from conftest import make_image
from csv_utilities import read_csv
from mask_utilities import cut_out
from png_utilities import encode_png
from record_utilities import Places, write_atomically
from report_utilities import write_report
from thumbnail_utilities import save_thumbnails, source_digest, thumbnail_names

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="no chromium with chromedriver: apt-get install chromium chromium-driver"
)
ITEMS = ("red", "dark red", "blue")
HOSTILE_ITEM = "\"'&<b>=cmd"
HOSTILE = (
    "<img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(1)</script>.jpg",
    "=cmd|' &C'!A0.jpg",
    "javascript:alert(1).jpg",
    "\u202egpj.exe.jpg",
    "a\nb%41#?.jpg",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    driver = start_browser(tmp_path_factory.mktemp("browser"), {"download.default_directory": str(downloads)})
    driver.downloads = downloads
    yield driver
    driver.quit()


def start_browser(profile, preferences):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "window-size=1200,900"),
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", preferences)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def row(source, label, margin, *flags):
    return {
        "file_name": f"{label}/{source.rpartition('.')[0] or source}.png",
        "label": label,
        "source": source,
        "label_source": "model",
        "model_label": label,
        "prompt": f"a {label} car",
        "item_probability": (1 + margin) / 2,
        "margin": margin,
        "top_items": [{"item": label, "probability": (1 + margin) / 2}, {"item": "blue", "probability": 0.1}],
        "mask_score": 0.9,
        "mask_area": 0.25,
        "width": 96,
        "height": 64,
        "flags": list(flags),
    }


ROWS = [row(f"street/{n}.jpg", ITEMS[n % 3], 0.9 - n / 20, *(["small"] if n % 4 == 0 else [])) for n in range(12)]
ROWS.append(row("doubtful.jpg", "blue", 0.05, "low margin", "review"))


def make_report(folder, rows, items=ITEMS, *, draw=True, **options):
    places = Places(folder / "out", folder / "out-review")
    rows_, columns = np.mgrid[:64, :96]
    mask = ((rows_ - 32) / 24) ** 2 + ((columns - 48) / 36) ** 2 < 1
    for seed, each in enumerate(rows if draw else ()):
        image = make_image(96, 64, seed)
        save_thumbnails(folder / "out-report", each["source"], image, alpha=255 * mask.astype(np.uint8), crop=None)
        write_atomically(places.png(each), encode_png(cut_out(image, mask), mask))
        write_atomically(folder / "photos" / each["source"], encode_png(image))
    given = {"dataset_dir": folder / "photos", "failures": [], "facts": {"SAM 2": "tiny"}, **options}
    return write_report(folder / "out-report", places, rows, items=items, **given)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    failures = [{"stage": "decode", "reason": "no <i>JPEG</i>", "source": "x.jpg"}]
    return make_report(tmp_path_factory.mktemp("report"), ROWS, failures=failures)


@pytest.fixture
def page(browser, report):
    return open_page(browser, report)


def open_page(browser, path, hash_=""):
    browser.get("about:blank")
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get("about:blank")
    browser.get(path.as_uri() + hash_)
    wait(browser, lambda: cells(browser))
    return browser


def wait(browser, condition, seconds=10):
    return WebDriverWait(browser, seconds, 0.02).until(lambda _: condition())


def cells(browser):
    return browser.find_elements(By.CSS_SELECTOR, ".cell")


def names(browser):
    """The photos of the grid, in order, as soon as their rows have come."""

    script = "return [...document.querySelectorAll('.cell')].sort((a, b) => a.dataset.place - b.dataset.place)"

    def read():
        texts = browser.execute_script(f"{script}.map(cell => cell.title)")
        return texts if all(texts) else None

    return wait(browser, read)


def place(cell):
    return int(cell.get_attribute("data-place"))


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def text(browser, id_):
    return browser.find_element(By.ID, id_).text


def shows(browser, id_, expected):
    wait(browser, lambda: expected in text(browser, id_))


def choose(browser, id_, label):
    select = browser.find_element(By.ID, id_)
    next(each for each in select.find_elements(By.TAG_NAME, "option") if each.text == label).click()


def errors(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def broken(browser):
    """The pictures that have not loaded; none while some are on their way."""
    script = "return [...document.images].filter(i => i.src && i.complete && !i.naturalWidth).map(i => i.src)"
    wait(browser, lambda: browser.execute_script("return [...document.images].every(i => !i.src || i.complete)"))
    return browser.execute_script(script)


def test_it_opens_without_errors_and_shows_every_photo_the_doubtful_first(page):
    assert names(page) == ["doubtful.jpg", *(f"street/{n}.jpg" for n in range(11, -1, -1))]
    assert text(page, "counts") == "12 cut-outs labelled, 1 in review, 1 failed"
    assert text(page, "shown") == "13 of 13 photos"
    assert broken(page) == []
    assert errors(page) == []


def test_what_failed_is_told_with_its_reason(page):
    page.find_element(By.CSS_SELECTOR, "#failures-box summary").click()
    assert "1 in decode: no <i>JPEG</i>" in text(page, "failures")
    assert "x.jpg" in text(page, "failures")


def test_filters_leave_the_photos_that_pass_and_stay_in_the_address(page):
    choose(page, "item", "dark red")
    shows(page, "shown", "4 of 13 photos")
    assert names(page) == [f"street/{n}.jpg" for n in (10, 7, 4, 1)]
    choose(page, "flag", "small")
    shows(page, "shown", "1 of 13 photos")
    address = page.current_url
    page.find_element(By.CSS_SELECTOR, "#filters button").click()
    shows(page, "shown", "13 of 13 photos")
    page.get("about:blank")
    page.get(address)
    shows(page, "shown", "1 of 13 photos")


def test_photos_are_found_by_name_and_by_probability(page):
    page.find_element(By.ID, "text").send_keys("STREET/1")
    shows(page, "shown", "3 of 13 photos")
    page.find_element(By.CSS_SELECTOR, "#filters button").click()
    page.find_element(By.ID, "high").send_keys("0.6")
    shows(page, "shown", "1 of 13 photos")
    assert names(page) == ["doubtful.jpg"]


def test_no_photo_that_passes_is_said(page):
    page.find_element(By.ID, "text").send_keys("nothing")
    wait(page, lambda: "No photo passes" in text(page, "viewport"))
    press(page, Keys.ESCAPE)
    page.find_element(By.ID, "viewport").click()
    page.find_element(By.TAG_NAME, "body").send_keys("r", Keys.ENTER, Keys.ARROW_RIGHT)
    assert errors(page) == []


def test_orders_are_doubt_surety_and_a_sample_that_is_the_same_each_time(page):
    doubtful = names(page)
    choose(page, "order", "surest first")
    wait(page, lambda: names(page) == doubtful[::-1])
    choose(page, "order", "random sample")
    wait(page, lambda: names(page) not in (doubtful, doubtful[::-1]))
    sample = names(page)
    assert sorted(sample) == sorted(doubtful)
    assert "only such labels tell how precise" in text(page, "sample-note")
    choose(page, "order", "doubtful first")
    choose(page, "order", "random sample")
    wait(page, lambda: names(page) == sample)


def test_the_original_shows_under_the_pointer_and_in_focus(page):
    cell = next(each for each in cells(page) if place(each) == 2)
    photo = cell.find_element(By.CSS_SELECTOR, ".photo")
    assert not photo.is_displayed()
    ActionChains(page).move_to_element(cell).perform()
    wait(page, photo.is_displayed)
    assert photo.get_attribute("src").endswith(".jpg")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.END)
    last = next(each for each in cells(page) if place(each) == 12)
    wait(page, last.find_element(By.CSS_SELECTOR, ".photo").is_displayed)


def test_the_background_is_a_checkerboard_or_white(page):
    picture = page.find_element(By.CSS_SELECTOR, ".picture")
    assert "gradient" in picture.value_of_css_property("background-image")
    choose(page, "ground", "white")
    wait(page, lambda: page.find_element(By.ID, "grid").get_attribute("class") == "white")
    picture = page.find_element(By.CSS_SELECTOR, ".picture")
    assert picture.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"


def test_details_open_and_close_with_keys(page):
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ENTER)
    shows(page, "details-title", "blue: doubtful.jpg")
    wait(page, lambda: page.find_element(By.CSS_SELECTOR, "#original path").get_attribute("d").startswith("M"))
    assert "low margin" in text(page, "numbers")
    assert "a blue car" in text(page, "numbers")
    assert text(page, "top").split()[-4:] == ["blue", "52.5%", "blue", "10.0%"]
    assert page.find_element(By.ID, "cut-out").get_attribute("src").endswith("/out-review/blue/doubtful.png")
    assert page.find_element(By.CSS_SELECTOR, "#original img").get_attribute("src").endswith("/photos/doubtful.jpg")
    assert broken(page) == []
    press(page, "m")
    wait(page, lambda: not page.find_element(By.CSS_SELECTOR, "#original svg").is_displayed())
    press(page, Keys.ARROW_RIGHT)
    shows(page, "details-title", "blue: street/11.jpg")
    press(page, Keys.ESCAPE)
    wait(page, lambda: not page.find_element(By.ID, "details").is_displayed())
    assert "street/11.jpg" in page.switch_to.active_element.get_attribute("title")
    assert errors(page) == []


def test_where_a_photo_is_gone_its_thumbnail_stands_in(browser, tmp_path):
    path = make_report(tmp_path, ROWS[:1])
    shutil.rmtree(tmp_path / "photos")
    open_page(browser, path).find_element(By.TAG_NAME, "body").send_keys(Keys.ENTER)
    image = browser.find_element(By.CSS_SELECTOR, "#original img")
    wait(browser, lambda: "/thumbnails/" in image.get_attribute("src"))
    assert broken(browser) == []
    browser.get_log("browser")  # of the photo that is not there


def reload(browser):
    browser.refresh()
    wait(browser, lambda: cells(browser))
    names(browser)


def select_cell(browser, name):
    """Gives a photo the focus by its name, without a key of the page."""
    cell = next(each for each in cells(browser) if each.get_attribute("title") == name)
    browser.execute_script("arguments[0].click(); document.getElementById('details').close()", cell)
    wait(browser, lambda: browser.switch_to.active_element == cell)


def save(browser):
    """The lines of the file that the page saves."""
    browser.find_element(By.ID, "save").click()
    saved = wait(browser, lambda: next(iter(browser.downloads.glob("corrections.csv")), None))
    lines = read_csv(saved, flag="--apply")
    saved.unlink()
    return lines


def verdicts(browser):
    marks = "[...document.querySelectorAll('.cell .verdict')]"
    return dict(browser.execute_script(f"return {marks}.map(mark => [mark.parentElement.title, mark.textContent])"))


def test_photos_are_reviewed_with_keys_and_the_verdicts_saved(page):
    body = page.find_element(By.TAG_NAME, "body")
    names(page)
    body.send_keys("r")  # doubtful.jpg
    press(page, "w")  # street/11
    press(page, "c")  # street/10
    wait(page, page.find_element(By.ID, "choice").is_displayed)
    press(page, "bl", Keys.ENTER)
    press(page, "b")  # street/9
    press(page, "s")  # street/8
    press(page, Keys.ENTER)  # street/7
    shows(page, "details-title", "street/7.jpg")
    press(page, "r")
    shows(page, "details-title", "street/6.jpg")
    press(page, "u")
    shows(page, "details-title", "street/7.jpg")
    press(page, "w", Keys.ESCAPE)
    expected = {
        "doubtful.jpg": "✓ right",
        "street/11.jpg": "✗ wrong",
        "street/10.jpg": "→ blue",
        "street/9.jpg": "⚠ bad mask",
        "street/7.jpg": "✗ wrong",
    }
    wait(page, lambda: verdicts(page) == expected)
    assert text(page, "reviewed-count") == "5 reviewed"

    page.get("about:blank")
    page.back()  # they stay
    wait(page, lambda: cells(page) and names(page) and verdicts(page) == expected)
    choose(page, "reviewed", "not yet")
    shows(page, "shown", "8 of 13 photos")

    lines = save(page)
    assert list(lines[0]) == ["file_name", "item", "verdict", "source"]
    assert [tuple(line.values()) for line in lines] == [
        ("blue/doubtful.png", "blue", "right", "doubtful.jpg"),
        ("blue/street/11.png", "", "wrong", "street/11.jpg"),
        ("dark red/street/10.png", "blue", "wrong", "street/10.jpg"),
        ("dark red/street/7.png", "", "wrong", "street/7.jpg"),
        ("red/street/9.png", "", "bad mask", "street/9.jpg"),
    ]
    page.find_element(By.ID, "clear").click()
    page.switch_to.alert.accept()
    shows(page, "reviewed-count", "0 reviewed")
    assert errors(page) == []


def many(count):
    return [row(f"{n:03}.jpg", ITEMS[n % 3], n / 1000) for n in range(count)]


def test_a_page_that_a_build_has_overtaken_says_so_and_takes_no_verdicts(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_CHUNK", 150)
    open_page(browser, make_report(tmp_path, many(300), draw=False))
    names(browser)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("r")
    make_report(tmp_path, [row("new.jpg", "blue", -0.5), *many(300)], draw=False)
    body.send_keys(Keys.END)
    wait(browser, lambda: "rebuilt" in warning(browser))
    for key in ("w", Keys.HOME, "w", "c", "u"):
        press(browser, key)
    assert verdicts(browser) == {"000.jpg": "✓ right"}
    assert [line["source"] for line in save(browser)] == ["000.jpg"]
    reload(browser)
    assert warning(browser) == ""
    assert verdicts(browser) == {"000.jpg": "✓ right"}
    browser.get_log("browser")  # of the pictures that are not there


def test_a_page_goes_on_when_the_same_is_built_again(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_CHUNK", 150)
    open_page(browser, make_report(tmp_path, many(300), draw=False))
    make_report(tmp_path, many(300), draw=False)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.END)
    assert "299.jpg" in names(browser)
    assert warning(browser) == ""
    browser.get_log("browser")


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_names_that_can_not_be_read_are_told_of(browser, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(report_utilities, "_CHUNK", 150)
    path = make_report(tmp_path, many(300), draw=False)
    chunk = path.parent / "data" / "rows-0001.js"
    chunk.unlink() if damage == "missing" else chunk.write_bytes(chunk.read_bytes()[:-9])
    open_page(browser, path).find_element(By.ID, "text").send_keys("1")
    wait(browser, lambda: "data/rows-0001.js can't be read" in warning(browser))
    assert text(browser, "shown") == "300 of 300 photos"
    browser.get_log("browser")


def warning(browser):
    return browser.find_element(By.CSS_SELECTOR, "main > .warning").text


def test_a_verdict_on_another_label_or_on_a_photo_that_is_gone_is_none(browser, tmp_path):
    rows = [row(f"{n}.jpg", "red", n / 10) for n in range(4)]
    open_page(browser, make_report(tmp_path, rows, draw=False))
    names(browser)
    for key in "rwb":
        browser.switch_to.active_element.send_keys(key)
    shows(browser, "reviewed-count", "3 reviewed")
    make_report(tmp_path, [row("0.jpg", "blue", 0.0), *rows[2:]], draw=False)
    reload(browser)
    assert verdicts(browser) == {"2.jpg": "⚠ bad mask"}
    assert text(browser, "reviewed-count") == "1 reviewed"
    choose(browser, "reviewed", "not yet")
    shows(browser, "shown", "2 of 3 photos")
    assert [line["source"] for line in save(browser)] == ["2.jpg"]
    make_report(tmp_path, rows, draw=False)
    reload(browser)  # what has its label again has its verdict again
    shows(browser, "reviewed-count", "3 reviewed")
    make_report(tmp_path, [rows[0], {**rows[1], "mask_score": 0.8}, {**rows[2], "mask_area": 0.3}, rows[3]], draw=False)
    reload(browser)  # nor is it one of a cut-out that has been made anew
    shows(browser, "reviewed-count", "1 reviewed")
    assert [line["source"] for line in save(browser)] == ["0.jpg"]
    make_report(tmp_path, rows, draw=False, dataset_dir=tmp_path / "others")
    reload(browser)
    assert text(browser, "reviewed-count") == "0 reviewed"
    browser.get_log("browser")


def test_a_label_of_a_human_has_no_probability_of_the_model(browser, tmp_path):
    agreed = row("agreed.jpg", "red", 0.3) | {"label_source": "human"}
    overruled = row("overruled.jpg", "blue", 0.1) | {"label_source": "human", "model_label": "red"}
    open_page(browser, make_report(tmp_path, [agreed, overruled], draw=False))
    assert [cell.find_element(By.CLASS_NAME, "sure").text for cell in cells(browser)] == ["by a human", "65.0%"]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(browser, lambda: "model's choice" in text(browser, "numbers"))
    assert "red, 55.0%" in text(browser, "numbers")
    assert "probability of the item" not in text(browser, "numbers")
    browser.get_log("browser")


def test_tabs_share_their_verdicts(page):
    names(page)
    page.find_element(By.TAG_NAME, "body").send_keys("r")
    address, first = page.current_url, page.current_window_handle
    page.switch_to.new_window("tab")
    page.get(address)
    wait(page, lambda: cells(page) and names(page))
    for key in "bw":
        select_cell(page, "street/11.jpg")
        press(page, key)
    page.switch_to.window(first)
    wait(page, lambda: verdicts(page) == {"doubtful.jpg": "✓ right", "street/11.jpg": "✗ wrong"})
    assert text(page, "reviewed-count") == "2 reviewed"
    assert [line["verdict"] for line in save(page)] == ["right", "wrong"]
    page.find_element(By.ID, "clear").click()
    page.switch_to.alert.accept()
    page.switch_to.window(next(each for each in page.window_handles if each != first))
    wait(page, lambda: verdicts(page) == {})
    press(page, "u")  # what the other tab has changed since is not this one's to take back
    assert text(page, "reviewed-count") == "0 reviewed"
    page.close()
    page.switch_to.window(first)


def test_what_another_tab_has_said_is_read_before_saving(page):
    names(page)
    page.find_element(By.TAG_NAME, "body").send_keys("r")
    said = {"verdict": "wrong", "item": "", "label": "blue", "name": "blue/street/11.png", "source": "street/11.jpg"}
    # From the page itself, so that no event tells of it.
    set_ = "localStorage.setItem(Object.keys(localStorage)[0].replace(/[^:]+$/, arguments[0]), arguments[1])"
    page.execute_script(set_, source_digest("street/11.jpg"), json.dumps(said))
    assert [line["source"] for line in save(page)] == ["doubtful.jpg", "street/11.jpg"]
    assert text(page, "reviewed-count") == "2 reviewed"


@pytest.mark.parametrize("value", ["{oops", "null", "5", "[]", '"red"', "{}", '{"label": 5}'])
def test_a_broken_verdict_is_none(page, value):
    names(page)
    page.find_element(By.TAG_NAME, "body").send_keys("r")
    press(page, "r")
    wait(page, lambda: len(verdicts(page)) == 2)
    broken_one = f"sam2vit:[^:]+:{source_digest('doubtful.jpg')}"
    find = "Object.keys(localStorage).find(key => RegExp(arguments[0]).test(key))"
    page.execute_script(f"localStorage.setItem({find}, arguments[1])", broken_one, value)
    reload(page)
    assert verdicts(page) == {"street/11.jpg": "✓ right"}
    assert errors(page) == []


def test_without_storage_verdicts_are_kept_until_the_page_goes(report, tmp_path):
    blocked = start_browser(tmp_path, {"profile.default_content_setting_values.cookies": 2})
    try:
        blocked.get(report.as_uri())
        wait(blocked, lambda: cells(blocked) and names(blocked))
        assert "lost on reload" in warning(blocked)
        blocked.find_element(By.TAG_NAME, "body").send_keys("r")
        wait(blocked, lambda: verdicts(blocked) == {"doubtful.jpg": "✓ right"})
        blocked.find_element(By.ID, "save").click()
        assert text(blocked, "reviewed-count") == "1 reviewed"
        press(blocked, "u")
        wait(blocked, lambda: verdicts(blocked) == {})
        assert errors(blocked) == []
    finally:
        blocked.quit()


FILL = """
for (let size = 1 << 20; size; size >>= 1) {
  try {
    for (let number = 0; ; number += 1) localStorage.setItem(`full ${size} ${number}`, "x".repeat(size));
  } catch {}
}
"""


def test_storage_without_room_is_told_of_until_there_is_some(page):
    names(page)
    page.find_element(By.TAG_NAME, "body").send_keys("w")
    page.execute_script(FILL)
    for key in (Keys.HOME, "r", "w"):  # the first anew, with a longer verdict
        press(page, key)
    wait(page, lambda: "no more room for 2 verdicts" in warning(page))
    choose(page, "reviewed", "done")
    shows(page, "shown", "2 of 13 photos")
    assert "no more room" in warning(page)
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ENTER)
    assert "no more room" in page.find_element(By.CSS_SELECTOR, "#details .warning").text
    press(page, Keys.ESCAPE)
    assert [line["verdict"] for line in save(page)] == ["right", "wrong"]
    page.find_element(By.ID, "clear").click()
    page.switch_to.alert.accept()
    shows(page, "reviewed-count", "0 reviewed")
    assert warning(page) == ""
    page.execute_script("localStorage.clear()")


def test_only_the_unbroken_beginning_of_the_random_order_is_called_a_sample(page):
    note = page.find_element(By.ID, "sample-note")
    vouches = "are a random sample"
    choose(page, "order", "random sample")
    wait(page, lambda: vouches in note.text)
    sample = names(page)
    page.find_element(By.TAG_NAME, "body").send_keys("r")
    press(page, "w")
    assert vouches in note.text
    press(page, "s")
    press(page, "r")
    wait(page, lambda: "1 verdict lies outside" in note.text)
    assert vouches not in note.text
    select_cell(page, sample[2])
    press(page, "b")
    wait(page, lambda: vouches in note.text)
    choose(page, "reviewed", "not yet")
    wait(page, lambda: "A filter is on" in note.text)
    choose(page, "reviewed", "all")
    wait(page, lambda: vouches in note.text)
    choose(page, "order", "doubtful first")
    wait(page, lambda: not note.is_displayed())
    select_cell(page, sample[-1])
    press(page, "r")
    select_cell(page, sample[-2])
    press(page, "r")
    choose(page, "order", "random sample")
    wait(page, lambda: "2 verdicts lie outside" in note.text)


def test_the_address_names_items_and_flags(browser, tmp_path):
    rows = [row("a.jpg", "b&w #1", 0.1, "small"), row("b.jpg", "red", 0.2, "borders")]
    path = make_report(tmp_path, rows, ["b&w #1", "red"], draw=False)
    open_page(browser, path)
    choose(browser, "item", "b&w #1")
    choose(browser, "flag", "small")
    shows(browser, "shown", "1 of 2 photos")
    address = browser.current_url
    make_report(tmp_path, rows[::-1], ["red", "b&w #1"], draw=False)
    browser.get("about:blank")
    browser.get(address)
    wait(browser, lambda: cells(browser))
    assert names(browser) == ["a.jpg"]
    make_report(tmp_path, rows[1:], ["red"], draw=False)
    browser.get("about:blank")
    browser.get(address)
    wait(browser, lambda: cells(browser))  # of all items: that one is there no longer
    assert browser.find_element(By.ID, "item").get_property("selectedIndex") == 0
    browser.get_log("browser")


def test_an_output_without_photos_says_so(browser, tmp_path):
    browser.get(make_report(tmp_path, []).as_uri())
    shows(browser, "viewport", "This output has no photos")
    for key in ("r", "c", "u", Keys.ENTER, Keys.END):
        browser.find_element(By.TAG_NAME, "body").send_keys(key)
    assert errors(browser) == []


def test_the_mouse_does_what_the_keys_do(page):
    names(page)
    cells(page)[0].click()
    shows(page, "details-title", "doubtful.jpg")
    page.find_element(By.CSS_SELECTOR, '[data-key="r"]').click()
    shows(page, "details-title", "street/11.jpg")
    page.find_element(By.CSS_SELECTOR, '[data-key="c"]').click()
    page.find_elements(By.CSS_SELECTOR, "#choice-list li")[0].click()
    shows(page, "details-title", "street/10.jpg")
    page.find_element(By.CSS_SELECTOR, '[data-key="Escape"]').click()
    wait(page, lambda: verdicts(page) == {"doubtful.jpg": "✓ right", "street/11.jpg": "→ red"})


def test_a_bar_of_an_item_filters_by_keyboard_too(page):
    page.find_element(By.CSS_SELECTOR, ".items a").send_keys(Keys.ENTER)
    shows(page, "shown", "5 of 13 photos")
    assert page.find_element(By.ID, "item").get_attribute("value") == "blue"


def test_help_names_the_keys(page):
    page.find_element(By.TAG_NAME, "body").send_keys("?")
    shows(page, "keys", "choose another item")
    press(page, Keys.ESCAPE)


@pytest.mark.parametrize(("output", "word"), [("cut-outs", "cut-outs"), ("it's mine", "'it'\\''s mine'")])
def test_help_has_the_command_that_takes_corrections_over(browser, tmp_path, output, word):
    open_page(browser, make_report(tmp_path, ROWS[:1], facts={"output": output}))
    browser.find_element(By.TAG_NAME, "body").send_keys("?")
    shows(browser, "apply-command", f"python main.py --output {word} --apply corrections.csv")


def test_no_name_acts_on_the_page(browser, tmp_path):
    rows = [row(each, HOSTILE_ITEM, 0.5) | {"file_name": f"{HOSTILE_ITEM}/{n}.png"} for n, each in enumerate(HOSTILE)]
    failures = [{"stage": "decode", "reason": HOSTILE[0], "source": HOSTILE[1]}]
    facts = {HOSTILE[0]: HOSTILE[1]}
    path = make_report(tmp_path, rows, [HOSTILE_ITEM], draw=False, failures=failures, facts=facts)
    open_page(browser, path)
    assert sorted(names(browser)) == sorted(HOSTILE)
    for _ in HOSTILE:
        browser.find_element(By.TAG_NAME, "body").send_keys("r")
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.HOME, Keys.ENTER)
    shows(browser, "details-title", HOSTILE_ITEM)
    made = "script:not([src]), #grid b, #facts img, #failures img"
    assert browser.find_elements(By.CSS_SELECTOR, made) == []
    assert browser.execute_script("return [...document.images].every(i => !i.hasAttribute('onerror'))")
    press(browser, Keys.ESCAPE)
    lines = save(browser)
    assert {line["file_name"] for line in lines} == {each["file_name"] for each in rows}
    assert {line["source"] for line in lines} == set(HOSTILE)
    assert {line["item"] for line in lines} == {HOSTILE_ITEM}
    browser.get_log("browser")  # of the pictures that are not there


def test_a_name_turns_nothing_but_itself(browser, tmp_path):
    turned = "\u202egpj.exe.jpg"
    open_page(browser, make_report(tmp_path, [row(turned, "red", 0.5)], draw=False))
    names(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ENTER)
    shows(browser, "numbers", "96 x 64")
    # Where a character stands on the line: what follows the name stays on its right.
    script = """
    const found = [...document.querySelectorAll("#numbers dd")].find(each => each.textContent.includes(" x "));
    const [name, size] = ["g", "9"].map(character => {
      for (const walker = document.createTreeWalker(found, NodeFilter.SHOW_TEXT); walker.nextNode();) {
        const place = walker.currentNode.data.indexOf(character), range = document.createRange();
        if (place < 0) continue;
        range.setStart(walker.currentNode, place);
        range.setEnd(walker.currentNode, place + 1);
        return range.getBoundingClientRect().left;
      }
    });
    return [name, size, found.getBoundingClientRect().left];
    """
    name, size, left = browser.execute_script(script)
    assert left < name < size
    browser.get_log("browser")


def test_its_benchmark_runs_from_end_to_end(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["page", "--photos", "600", "--json"])
    benchmarks.page.main()
    result = json.loads(capsys.readouterr().out)
    assert all(value > 0 for value in result.values())
    assert result["cells in the document"] < 100


def test_its_benchmark_has_thumbnails_of_the_photos_that_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_MOST_PHOTOS", 5)
    monkeypatch.setattr(report_utilities, "_SAMPLE", 2)
    benchmarks.page.link_thumbnails(tmp_path, 40)
    linked = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_symlink()}
    doubtful = sorted(benchmarks.page.make_rows(40), key=lambda row: row["margin"])[:5]
    assert linked >= {name for row in doubtful for name in thumbnail_names(row["source"])}
    assert len(linked) <= 2 * (5 + 2)


def test_of_many_photos_few_cells_exist(browser, tmp_path):
    rows = [row(f"{n:04}.jpg", ITEMS[n % 3], n / 2000) for n in range(2000)]
    open_page(browser, make_report(tmp_path, rows, draw=False))
    assert len(cells(browser)) < 100
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.END)
    wait(browser, lambda: "1999.jpg" in [cell.get_attribute("title") for cell in cells(browser)])
    assert len(cells(browser)) < 100
    assert len(browser.find_elements(By.CSS_SELECTOR, "script[src^='data/rows']")) < 4
    browser.find_element(By.ID, "text").send_keys("1234")
    shows(browser, "shown", "1 of 2,000 photos")
    browser.get_log("browser")
