"""The page of a run as a browser lays it out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.reports.pages import PICTURES, SECTIONS, folder  # noqa: F401

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
@pytest.mark.parametrize('width', [1400, 390])
def test_rendered_in_chromium(folder, tmp_path, width):
    """The page as a browser lays it out: pictures drawn, readable, answering to the mouse, and nothing wider than the
    window but inside a table's box."""
    measure = """<script>addEventListener('load', () => {
      const images = [...document.querySelectorAll('svg.panel')], box = e => e.getBoundingClientRect();
      const inside = e => e.closest('.table') !== null;
      document.title = JSON.stringify({
        inner: innerWidth,
        scroll: document.documentElement.scrollWidth,
        images: images.length,
        drawn: images.filter(i => i.querySelectorAll('path, rect').length > 1 && box(i).height > 100).length,
        narrowest: Math.min(...images.map(i => box(i).width)),
        columns: new Set(images.map(i => Math.round(box(i).left))).size,
        wide: [...document.querySelectorAll('body *')].filter(e => !inside(e) && box(e).right > innerWidth + 1)
          .map(e => e.tagName),
        screen: box(images[2]).bottom,
        told: told(JSON.parse(images[0].dataset.panel), 260, 100),
        removed: told(JSON.parse(document.querySelector('#prune_masks_heads svg').dataset.panel), 260, 74),
        font: parseFloat(getComputedStyle(document.querySelector('td')).fontSize),
        headings: [...document.querySelectorAll('h3')].map(e => e.textContent),
      });
    });</script>"""
    copy = tmp_path / 'page.html'
    copy.write_text((folder / 'run_report' / 'report.html').read_text().replace('</body>', measure + '</body>'))
    # A frame has exactly the width asked for; the window itself may have a least width.
    (tmp_path / 'frame.html').write_text(
        '<iframe id="f" src="page.html"'
        f' style="border:0;width:{width}px;height:2000px"></iframe><script>addEventListener("load", () => {{'
        ' document.title = document.getElementById("f").contentDocument.title; });</script>'
    )
    process = subprocess.run(
        [
            CHROMIUM,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--allow-file-access-from-files',
            f'--user-data-dir={tmp_path / "profile"}',
            '--window-size=1500,2100',
            '--virtual-time-budget=10000',
            '--dump-dom',
            (tmp_path / 'frame.html').as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = json.loads(re.search(r'<title>(.*?)</title>', process.stdout, re.DOTALL).group(1))
    assert found['inner'] == width and found['scroll'] <= width and not found['wide'], found
    assert found['images'] == found['drawn'] == sum(map(len, PICTURES.values()))
    assert found['headings'] == [text for sections in SECTIONS.values() for text in sections]
    assert found['font'] >= 14
    # Labels are 12 units in a picture of 460, so this is what makes them readable.
    assert found['narrowest'] >= 340
    assert found['columns'] == (3 if width == 1400 else 1)
    assert found['told'] == 'batch 20\nloss: 4' and found['removed'] == 'layer 2: removed'
    if width == 1400:
        assert found['screen'] < 700  # what is looked at first is there without scrolling
