"""The page in a real browser: what a model has said is shown, and nothing of it happens."""

import html
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from pytest_httpserver import HTTPServer

from trl_exbias.comparing.content import Sample
from trl_exbias.comparing.html import render_html
from trl_exbias.comparing.plots import plots
from trl_exbias.comparing.sections import sections

from .runs import HOSTILE, content


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
_CSP = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n')


def page(found) -> str:
    return render_html(found, sections(found), plots(found))


def browse(folder, text: str, *flags: str) -> str:
    """What the browser makes of a page: its document after everything has been loaded and run."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/u",
    ]
    command += ["--virtual-time-budget=2000", *flags, f"file://{folder}/page.html"]
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode()


def pixels(path) -> np.ndarray:
    """An 8-bit PNG as the browser writes it, of shape `(height, width, 3)`."""
    from matplotlib.image import imread

    return (imread(path)[:, :, :3] * 255).round().astype(int)


@needs_browser
def test_no_script_of_a_completion_is_run(tmp_path):
    """With the page's own policy against scripts, and without it: the escaping alone must do."""
    for text in (page(content()), _CSP.sub("", page(content()))):
        dom = browse(tmp_path, text, "--dump-dom")
        assert "<title>Four methods on word problems</title>" in dom
        assert "<script" not in dom and "taken over</h1>" not in dom
        assert html.escape("<script>document.title='pwned'</script>", quote=False) in dom, "shown as it was said"


@needs_browser
def test_the_browser_of_these_tests_does_run_scripts(tmp_path):
    """Or the test above could not fail."""
    dom = browse(tmp_path, f"<title>before</title><body>{HOSTILE}</body>", "--dump-dom")
    assert "<title>pwned</title>" in dom


@pytest.fixture
def httpserver():
    """A server with a thread a request: a browser opens connections ahead, and would wait for them one after another."""
    with HTTPServer(threaded=True) as server:
        yield server


@needs_browser
def test_nothing_is_fetched_whatever_a_completion_asks_for(tmp_path, httpserver):
    httpserver.expect_request(re.compile(".*")).respond_with_data("")
    address = httpserver.url_for("/")
    bait = (
        f'<img src="{address}img"><link rel=stylesheet href="{address}css"><iframe src="{address}frame"></iframe>'
        f"<style>@import url({address}import)</style>![]({address}markdown)"
    )
    found = content()
    names = {entry.name: bait for entry in found.entries}
    baited = replace(found, title=bait, samples=(Sample(bait, names),))
    for text in (page(baited), _CSP.sub("", page(baited))):
        browse(tmp_path, text, "--dump-dom")
    assert httpserver.log == []
    browse(tmp_path, bait, "--dump-dom")
    assert httpserver.log, "the bait does work where it is not escaped"


@needs_browser
@pytest.mark.parametrize("width", [1280, 520])
def test_plots_are_drawn_and_the_page_fits_the_window(tmp_path, width):
    """Runs have their colours in the picture; tables and plots that are too wide scroll by themselves, not the page."""
    text = page(content())
    picture = tmp_path / "page.png"
    browse(tmp_path, text, f"--window-size={width},5000", f"--screenshot={picture}")
    image = pixels(picture)
    assert image.shape[1] == width
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x4C, 0x6A, 0x92), (0xE0, 0xA4, 0x58)):
        assert (np.abs(image - colour).max(axis=2) <= 2).sum() > 100, colour
    measured = _CSP.sub("", text).replace(
        "</body>",
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, "
        "...[...document.images].map(i => i.naturalWidth)].join(' ')</script></body>",
    )
    dom = browse(tmp_path, measured, f"--window-size={width},5000", "--dump-dom")
    page_width, window, *images = map(int, re.search("<title>(.*?)</title>", dom)[1].split())
    assert page_width <= window and len(images) == 4 and min(images) > 100


def test_the_page_needs_nothing_beside_it():
    text = page(content())
    assert re.findall(r'(?:src|href)="(?!data:image/svg\+xml;base64,)', text) == []
    assert "<script" not in text and "http://" not in re.sub(r'base64,[^"]*', "", text)


def test_what_stands_in_a_table_is_escaped_too():
    first, *others = content().entries
    hostile = replace(others[0], name="<b>sft</b>", own={"prompt_template": HOSTILE})
    found = content(entries=(first, hostile, *others[1:]), title="a < b & c")
    text = page(found)
    assert "<b>" not in text and "&lt;b&gt;sft&lt;/b&gt;" in text and "<title>a &lt; b &amp; c</title>" in text


def test_the_same_content_gives_the_same_page():
    assert page(content()) == page(content())
