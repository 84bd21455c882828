"""The event display in a real browser."""
import hashlib

import numpy as np
import pytest
from browser import needs_browser

from nexuslab.systems.icecube.event import dense_event, draw_event
from nexuslab.systems.icecube.views import event_display

INKED = """() => {
  const pixels = document.querySelector("canvas").getContext("2d").getImageData(0, 0, 600, 600).data;
  return pixels.reduce((n, v, i) => n + (i % 4 == 3 && v > 0), 0);
}"""


DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def picture(page) -> bytes:
    """A digest of the page once what was asked is on the screen: a busy machine draws late."""
    page.evaluate(DRAWN)
    return hashlib.sha256(page.screenshot()).digest()


@needs_browser
@pytest.mark.xdist_group("browser")
def test_an_event_is_drawn_and_turned_with_the_mouse(lab):
    label, event = draw_event(np.random.default_rng(1))
    page, errors = lab.page.context.browser.new_page(viewport={"width": 620, "height": 620}), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: errors.append(request.url))  # the picture fetches nothing
    try:
        page.set_content(event_display(dense_event(event), label).data)
        seen = [picture(page)]
        assert page.evaluate(INKED) > 3000
        page.mouse.move(300, 300)
        page.mouse.down()
        page.mouse.move(400, 320)
        page.mouse.up()
        seen.append(picture(page))
        page.mouse.move(200, 200)  # the button is up
        seen.append(picture(page))
        assert seen[0] != seen[1] == seen[2] and not errors
    finally:
        page.close()
