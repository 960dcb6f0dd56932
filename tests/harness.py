"""The inspector and the comparison on a page of their own, in headless Chromium: what the whole page gives them is here
as small as it can be, under the same content security policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.staticfiles import StaticFiles
from selenium import webdriver

from penstock.services import dashboard

STATIC = Path(dashboard.__file__).parent / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<link rel="stylesheet" href="/harness.css"><link rel="stylesheet" href="/static/{name}.css"></head>
<body><main id="here"></main><script type="module" src="/harness.js"></script></body></html>"""
STYLE = """html {{ color-scheme: light dark }} body {{ margin: 16px; font-family: sans-serif }}
html[data-theme=dark] {{ color-scheme: dark; background: #15181d; color: #e4e7ec }}
html[data-theme=light] {{ color-scheme: light; background: #fff; color: #1b1d21 }}"""
SCRIPT = """
import {{ mount }} from '/static/{name}.js';
const theme = new URLSearchParams(location.search).get('theme') ?? 'light';
document.documentElement.dataset.theme = theme;
window.plotted = [];
window.refused = [];
document.addEventListener('securitypolicyviolation', (event) => window.refused.push(event.violatedDirective));
const api = {{
  async get(path, params) {{
    const answer = await fetch('/api/' + path + '?' + new URLSearchParams(params));
    const body = await answer.json();
    if (!answer.ok) throw new Error(typeof body.detail === 'string' ? body.detail : JSON.stringify(body.detail));
    return body;
  }},
  theme: () => document.documentElement.dataset.theme,
  plot(element, spec) {{ window.plotted.push(spec); draw(element, spec); }},
}};
function draw(element, spec) {{
  const canvas = document.createElement('canvas');
  canvas.width = element.clientWidth || 600;
  canvas.height = 240;
  element.replaceChildren(canvas);
  const pen = canvas.getContext('2d');
  const xs = spec.series.flatMap((s) => s.x), ys = spec.series.flatMap((s) => s.y).filter((y) => y !== null);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  spec.series.forEach((s, n) => {{
    pen.strokeStyle = ['#0072b2', '#d55e00'][n % 2];
    pen.beginPath();
    s.x.forEach((x, i) => s.y[i] !== null && pen.lineTo(
      10 + (canvas.width - 20) * (x - left) / (right - left || 1), 230 - 220 * (s.y[i] - low) / (high - low || 1)));
    pen.stroke();
  }});
}}
window.mounted = mount(document.getElementById('here'), api);
"""


@contextmanager
def page_of(name: str, router: APIRouter) -> Iterator[str]:
    """The address of a page with the module `name` on it and `router` behind it."""
    app = FastAPI()
    app.include_router(router, prefix="/api")

    def at(path: str, content: str, media: str) -> None:
        app.get(path)(lambda: Response(content, media_type=media, headers={"content-security-policy": POLICY}))

    at("/", PAGE.format(name=name), "text/html")
    at("/favicon.ico", "", "image/x-icon")
    at("/harness.css", STYLE.format(), "text/css")
    at("/harness.js", SCRIPT.format(name=name), "text/javascript")
    app.mount("/static", StaticFiles(directory=STATIC))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the server starts")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """Headless Chromium with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def until(true: Any, what: str, seconds: float = 10.0) -> Any:
    """Wait until `true()`, and give what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s until {what}")
        time.sleep(0.05)
    return found
