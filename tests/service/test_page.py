"""The page at `/`, in a real Chromium."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from models.architectures import classifier
from service.page import SAMPLES
from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service
from training.shapes10 import CLASSES

pytestmark = pytest.mark.slow

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
THRESHOLD = 0.27  # between what it gives to noise
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
DROP = """([name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const told = { bubbles: true, cancelable: true };
  document.dispatchEvent(WAY);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: make system")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield made
        made.close()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model knows the demo's shapes, and is sure of little."""
    path = tmp_path_factory.mktemp("page") / "model.pt"
    torch.manual_seed(0)
    model = artifacts.sure(classifier("simple_cnn", len(CLASSES)))
    artifacts.write(path, model=model, classes=CLASSES, unknown_threshold=THRESHOLD)
    with running.serving(path, "--max-body-bytes", "2000000") as service:
        yield service


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A window that fails the test on any error, or request to anybody else."""
    made = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]
    problems: list[str] = []
    hosts: set[str] = set()
    made.on("page", lambda page: watch(page, problems, hosts))
    yield made
    made.close()
    assert [] == problems
    assert all(host.startswith(("http://127.0.0.1:", "data:", "blob:")) for host in hosts), hosts


def watch(page: Page, problems: list[str], hosts: set[str]) -> None:
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        # That a request was refused or not answered is shown to the reader, and told there by the browser too.
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.on("request", lambda request: hosts.add(request.url))


@pytest.fixture
def page(context: BrowserContext, shapes: Service) -> Page:
    made = context.new_page()
    made.goto(shapes.url)
    return made


def picture(name: str = "photo.png", body: bytes | None = None) -> Any:
    """A file as one chooses it."""
    return {"name": name, "mimeType": "image/png", "buffer": noise(1, (200, 150)) if body is None else body}


def answered(page: Page, count: int = 1) -> None:
    """Wait for so many answers or refusals."""
    expect(page.locator("article[aria-busy=false]")).to_have_count(count, timeout=20_000)


def violations(page: Page) -> list[str]:
    """What axe-core finds against WCAG and its best practices."""
    page.evaluate(AXE.read_text())  # past the policy, as a reader's own tool
    found = page.evaluate("axe.run().then((results) => results.violations)")
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def test_a_chosen_picture_gets_bars_timing_and_the_lines_that_ask_the_same(page: Page, shapes: Service) -> None:
    page.locator("#files").set_input_files(picture())
    answered(page)
    expected = shapes.post(noise(1, (200, 150))).json()["predictions"]
    bars = page.locator("article .bars li")

    assert [one["class"] for one in expected] == bars.locator(".name").all_inner_texts()
    assert f"{100 * expected[0]['probability']:.1f} %" == bars.first.locator(".value").inner_text()
    assert page.locator(".stack").get_attribute("aria-label").startswith("Time in the service: receive ")  # type: ignore[union-attr]
    page.locator("summary", has_text="from a shell").click()
    assert f"curl -F file=@photo.png {shapes.url}/predict" == page.locator(".curl").inner_text()
    assert "requests.post(" in page.locator(".python").inner_text()
    assert "photo.png: " in page.locator("#said").inner_text()


def test_several_pictures_are_answered_each(page: Page) -> None:
    page.locator("#files").set_input_files([picture(f"{number}.png", noise(number)) for number in range(12)])
    answered(page, 12)

    assert 12 == page.locator("article h3").count()


@pytest.mark.parametrize(
    "way",
    [
        "new DragEvent('drop', { ...told, dataTransfer: transfer })",
        "new ClipboardEvent('paste', { ...told, clipboardData: transfer })",
    ],
    ids=["dropped", "pasted"],
)
def test_a_picture_that_is_dropped_or_pasted_is_answered(page: Page, way: str) -> None:
    body = base64.b64encode(noise(2)).decode()
    page.evaluate(DROP.replace("WAY", way), ["cat.png", "image/png", body])
    answered(page)

    expect(page.locator("article img")).to_have_attribute("alt", "cat.png")
    expect(page.locator("article .bars li")).to_have_count(5)


def test_below_the_threshold_the_answer_is_unknown(page: Page, shapes: Service) -> None:
    before = shapes.sample("darkroom_unknown_total")
    bodies = [noise(seed, (64, 64)) for seed in range(30)]
    replies = [shapes.post(body).json() for body in bodies]
    known = {("unknown" in reply, reply["predictions"][0]["probability"] < THRESHOLD) for reply in replies}
    assert {(True, True), (False, False)} == known
    unknown = next(body for body, reply in zip(bodies, replies, strict=True) if "unknown" in reply)
    page.locator("#files").set_input_files(picture("odd.png", unknown))
    answered(page)

    expect(page.locator("article h3")).to_have_text("unknown")
    expect(page.locator("article .state")).to_contain_text("below this model's threshold")
    counted = shapes.sample("darkroom_unknown_total") - before
    assert sum("unknown" in reply for reply in replies) + 1 == counted


def test_a_drawing_by_pointer_is_answered(page: Page) -> None:
    page.locator("#draw summary").click()
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    empty = page.evaluate("document.getElementById('canvas').toDataURL()")
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 180, steps=5)
    page.mouse.up()
    drawn = page.evaluate("document.getElementById('canvas').toDataURL()")
    page.get_by_role("button", name="Classify the drawing").click()
    answered(page)

    assert empty != drawn
    expect(page.locator("article img")).to_have_attribute("alt", "drawing.png")


def test_everything_can_be_done_with_a_keyboard(page: Page) -> None:
    page.locator("#draw summary").focus()
    page.keyboard.press("Enter")
    page.locator("#canvas").focus()
    empty = page.evaluate("document.getElementById('canvas').toDataURL()")
    for key in ["Space", *["ArrowRight"] * 5, *["ArrowDown"] * 5, "Space"]:
        page.keyboard.press(key)
    assert empty != page.evaluate("document.getElementById('canvas').toDataURL()")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Drawing area, brush up at 168, 168")
    for _ in range(3):  # colour, clear, classify
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    answered(page)
    why = page.get_by_role("button", name="What did it look at?")
    why.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".whytold")).to_contain_text("masked", timeout=20_000)

    reached = [page.locator("#files"), page.locator("#camera"), page.locator("#samples button").first]
    for one in reached:
        one.focus()
        expect(one).to_be_focused()


def test_samples_are_there_for_the_demos_classes_only(page: Page, context: BrowserContext, service: Service) -> None:
    assert len(SAMPLES) == page.locator("#samples button").count()
    page.get_by_role("button", name="Classify a drawn star").click()
    answered(page)

    other = context.new_page()
    other.goto(service.url)
    expect(other.locator("#samples")).to_be_hidden()


def test_a_heat_map_tells_which_part_mattered(page: Page) -> None:
    page.get_by_role("button", name="Classify a drawn circle").click()
    answered(page)
    page.get_by_role("button", name="What did it look at?").click()
    told = page.locator(".whytold")
    expect(told).to_contain_text("masked", timeout=20_000)
    painted = page.evaluate(
        "(() => { const heat = document.querySelector('.heat');"
        " return [...heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data]; })()"
    )

    assert 8 * 8 * 4 == len(painted)
    assert max(painted[3::4]) > min(painted[3::4])


def test_what_is_no_picture_is_refused_with_the_reason(page: Page) -> None:
    page.locator("#files").set_input_files(picture("note.png", b"hello"))
    answered(page)

    expect(page.locator("article.refused .state")).to_contain_text("not an image of an accepted format")
    expect(page.locator("article .again")).to_be_visible()


def test_without_a_service_the_page_says_so_and_tries_again(context: BrowserContext, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "model.pt")
    with running.serving(tmp_path / "model.pt") as service:
        page = context.new_page()
        page.goto(service.url)
        context.set_offline(True)
        page.locator("#files").set_input_files(picture())
        answered(page)
        expect(page.locator("article .state")).to_contain_text("cannot be reached")
        context.set_offline(False)
        page.locator("article .again").click()
        expect(page.locator("article .bars li")).to_have_count(5)


def test_a_key_is_asked_for_where_one_is_needed(context: BrowserContext, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "model.pt")
    with running.serving(tmp_path / "model.pt", DARKROOM_API_KEYS="secret") as service:
        page = context.new_page()
        page.goto(service.url)
        page.locator("#files").set_input_files(picture())
        expect(page.locator("#secret")).to_be_focused()
        assert [] == violations(page)
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        expect(page.locator("article .bars li")).to_have_count(5)
        expect(page.locator("article .curl")).to_contain_text('-H "X-API-Key: $KEY"')


def test_the_speed_measured_at_the_start_is_drawn_and_told_in_a_table(page: Page, shapes: Service) -> None:
    speed = shapes.get("/info").json()["speed"]
    page.locator("#speed summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#speed svg")).to_be_visible()
    rows = page.locator("#speed tbody tr")

    assert [str(size) for size, _ in speed["curve"]] == rows.locator("td:first-child").all_inner_texts()
    assert len(speed["curve"]) == page.locator("#speed circle").count()
    assert f"{speed['curve'][0][1]} ms for 1," in (page.locator("#speed svg").get_attribute("aria-label") or "")
    expect(page.locator("#speed p")).to_contain_text(f"Batches of up to {speed['batch_size']}, ")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_the_screen(
    context: BrowserContext, shapes: Service, size: dict[str, int], scheme: Any
) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)  # type: ignore[arg-type]
    page.goto(shapes.url)
    page.locator("#files").set_input_files([picture(), picture("a-very-long-name-of-a-picture-" * 5 + ".png", b"x")])
    answered(page, 2)
    page.locator("#draw summary").click()
    page.locator("summary", has_text="classes").click()
    page.locator("#speed summary").click()
    expect(page.locator("#speed table")).to_be_visible()
    page.get_by_role("button", name="What did it look at?").click()
    expect(page.locator(".whytold").last).to_contain_text("masked", timeout=20_000)
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{scheme}-{size['width']}.png", full_page=True)

    assert [] == violations(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_policy_lets_nothing_in_but_the_pages_own_script(browser: Browser, shapes: Service) -> None:
    page = browser.new_page()
    page.goto(shapes.url)
    reply = shapes.get("/")
    policy = reply.headers["content-security-policy"]
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = true\">')")

    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.evaluate("window.broken") is None
    page.close()


def test_a_name_with_markup_is_told_and_not_obeyed(context: BrowserContext, tmp_path: Path) -> None:
    name = '<img src=x onerror="window.broken = 1">'
    artifacts.write(tmp_path / "model.pt", classes=(name, '</script><b>"', *(f"c{number}" for number in range(8))))
    with running.serving(tmp_path / "model.pt") as service:
        page = context.new_page()
        page.goto(service.url)
        page.locator("#files").set_input_files(picture())
        answered(page)
        page.locator("summary", has_text="classes").click()

        assert page.evaluate("window.broken") is None
        expect(page.locator("ol[start='0'] li").first).to_have_text(name)
        facts = json.loads(page.locator("#facts").text_content() or "")
        assert 10 == facts["classes"]


def test_each_of_several_models_is_tried_on_its_own_page(context: BrowserContext, tmp_path: Path) -> None:
    for index, name in enumerate(("letters", "shapes")):
        artifacts.write(tmp_path / name / "1.pt", model=artifacts.always(index, 2), name=name, classes=("a", "b"))
    with running.serving(tmp_path) as service:
        page = context.new_page()
        page.goto(service.url)
        found = violations(page)
        page.get_by_role("link", name="shapes").click()
        page.locator("#files").set_input_files(picture())
        answered(page)
        best = page.locator("article .bars li .name").first.inner_text()
        page.locator("summary", has_text="from a shell").click()
        asked = page.locator(".curl").inner_text()
        page.locator("#speed summary").click()
        expect(page.locator("#speed table")).to_be_visible()

    assert ("b", f"curl -F file=@photo.png {service.url}/predict/shapes", []) == (best, asked, found)
