"""Looks at a report of `cargo xtask eval` in headless Chromium, without network.

    python tests/reference/report_check.py target/eval/report.html shots/

At the width of a desk and of a phone, with everything opened: nothing is wider than the window, no text is cut off,
no labels of a figure and no parts of a card overlap, nothing is asked for from elsewhere; then every player plays.
Pictures of the page go into the folder that is named last. Needs a Chromium (`--chromium`), and nothing from PyPI:
it is spoken to over a pipe.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTHS = [1280, 390]
MAX_BYTES = 15_000_000
# Height of a picture, and how many are taken of a page from its top.
HEIGHT = 1400
N_PICTURES = 8

OPEN_ALL = "for (const d of document.querySelectorAll('details')) d.open = true"

# What lies beyond the window, but for tables, which scroll by themselves.
LOOK = """(() => {
  const found = [];
  const say = (what, e) => found.push(what + ': ' + (e.tagName + ' ' + (e.textContent || '').trim().slice(0, 60)));
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push('the page is ' + document.documentElement.scrollWidth + ' wide');
  const seen = e => e.getClientRects().length > 0;
  for (const e of document.querySelectorAll('body *')) {
    if (!seen(e) || e.closest('.scroll') || e.closest('input')) continue;
    const box = e.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) say('beyond the window', e);
    const style = getComputedStyle(e);
    const cuts = style.overflowX == 'hidden' || style.textOverflow == 'ellipsis';
    if (cuts && e.scrollWidth > e.clientWidth + 1) say('cut off', e);
  }
  // On a desk the tables have room, too.
  if (width > 1000) for (const e of document.querySelectorAll('.scroll')) if (seen(e) && e.scrollWidth > e.clientWidth + 1) say('wider than the window: ' + e.scrollWidth, e);
  for (const e of document.querySelectorAll('.scroll')) {
    if (seen(e) && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)) say('does not scroll', e);
  }
  const apart = (elements, what) => {
    const boxes = elements.filter(seen).map(e => [e, e.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
      const [a, b] = [boxes[i][1], boxes[j][1]];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 1) say(what + ' overlaps ' + boxes[j][0].textContent.slice(0, 30), boxes[i][0]);
    }
  };
  for (const svg of document.querySelectorAll('figure svg')) {
    apart([...svg.querySelectorAll('text')], 'label');
    if (seen(svg)) for (const text of svg.querySelectorAll('text')) {
      const [a, b] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
      if (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1) say('label cut off', text);
    }
  }
  for (const card of document.querySelectorAll('.card')) {
    apart([...card.children], 'part of a card');
    apart([...card.querySelectorAll('h4 span')], 'heading of a card');
  }
  for (const grid of document.querySelectorAll('.cards, .charts, body, main')) apart([...grid.children].filter(e => e.tagName != 'STYLE'), 'part of the page');
  return found;
})()"""

N_PLAYERS = "document.querySelectorAll('audio').length"

# Plays one to its first tenth of a second, then forgets it: a page may not have many open at once.
PLAY = """(async () => {
  const audio = document.querySelectorAll('audio')[%d];
  const source = audio.src;
  const name = (audio.closest('details').querySelector('summary').textContent + ' ' + audio.ariaLabel).trim();
  audio.muted = true;
  try {
    await audio.play();
    const start = Date.now();
    while (audio.currentTime < 0.1 && Date.now() - start < 5000) await new Promise(r => setTimeout(r, 10));
    audio.pause();
    if (audio.currentTime < 0.1) return name + ': does not get on';
    if (!(audio.duration > 0.3 && audio.duration < 60)) return name + ': lasts ' + audio.duration;
    audio.removeAttribute('src'); audio.load(); audio.src = source;
    return '';
  } catch (e) { return name + ': ' + e; }
})()"""


class Browser:
    """A Chromium, over the pipe of its DevTools protocol."""

    def __init__(self, program, profile):
        to_read, self.to_write = os.pipe()
        self.to_read, to_write = os.pipe()
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--autoplay-policy=no-user-gesture-required", "--disable-background-networking",
                 "--hide-scrollbars", f"--user-data-dir={profile}"]
        # The browser reads from 3 and writes to 4.
        shell = f"exec \"$0\" \"$@\" 3<&{to_read} 4>&{to_write}"
        self.process = subprocess.Popen(["bash", "-c", shell, program, *flags, "about:blank"],
                                        pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.n_sent, self.buffer, self.events = 0, b"", []
        targets = self.call("Target.getTargets", {}, None)["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        attach = {"targetId": page["targetId"], "flatten": True}
        self.session = self.call("Target.attachToTarget", attach, None)["sessionId"]

    def message(self):
        while b"\0" not in self.buffer:
            more = os.read(self.to_read, 1 << 20)
            if not more:
                raise SystemExit("the browser is gone")
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, params=None, session=""):
        self.n_sent += 1
        message = {"id": self.n_sent, "method": method, "params": params or {}}
        session = self.session if session == "" else session
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to_write, data):]
        while True:
            answer = self.message()
            if answer.get("id") != self.n_sent:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise SystemExit(f"{method}: {answer['error']}")
            return answer["result"]

    def wait_for(self, event):
        while True:
            found = next((e for e in self.events if e.get("method") == event), None)
            if found:
                return found
            self.events.append(self.message())

    def evaluate(self, script):
        params = {"expression": script, "awaitPromise": True, "returnByValue": True}
        result = self.call("Runtime.evaluate", params)
        if "exceptionDetails" in result:
            raise SystemExit(f"the script failed: {result['exceptionDetails']}")
        return result["result"].get("value")

    def picture(self, path, top, width, height):
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        params = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", params)["data"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("shots", type=Path)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--players", type=int, help="play at most so many, spread over the page")
    args = parser.parse_args()
    args.shots.mkdir(parents=True, exist_ok=True)
    faults = []
    size = args.report.stat().st_size
    print(f"{args.report}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        faults.append(f"{size} bytes are more than {MAX_BYTES}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(args.chromium, profile)
        try:
            for domain in ["Page", "Network", "Runtime"]:
                browser.call(f"{domain}.enable")
            offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            browser.call("Network.emulateNetworkConditions", offline)
            for width in WIDTHS:
                faults += [f"{width}: {fault}" for fault in look(browser, args, width)]
            faults += play(browser, args.players)
        finally:
            browser.process.kill()
            browser.process.wait()
    for fault in faults[:40]:
        print(f"fault: {fault}")
    print(f"{len(faults)} fault(s)")
    sys.exit(bool(faults))


def look(browser, args, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", metrics)
    browser.events.clear()
    browser.call("Page.navigate", {"url": args.report.resolve().as_uri()})
    browser.wait_for("Page.loadEventFired")
    faults = []
    for event in browser.events:
        if event.get("method") == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            if not url.startswith(("data:", "file:")):
                faults.append(f"asks for {url[:80]}")
    height = browser.evaluate("document.documentElement.scrollHeight")
    for at in range(0, min(height, N_PICTURES * HEIGHT), HEIGHT):
        path = args.shots / f"{width}-{at // HEIGHT}.png"
        browser.picture(path, at, width, min(HEIGHT, height - at))
    n_tabs = browser.evaluate("document.querySelectorAll('#curves ~ .tabs')[0].querySelectorAll('input').length")
    browser.evaluate(OPEN_ALL)
    for tab in range(max(n_tabs, 1)):
        browser.evaluate(f"for (const t of document.querySelectorAll('.t{tab}')) t.checked = true")
        time.sleep(0.3)
        faults += browser.evaluate(LOOK)
    for anchor in ["table", "clips", "provenance"]:
        script = f"(e => e ? e.getBoundingClientRect().top + scrollY : -1)(document.getElementById('{anchor}'))"
        at = browser.evaluate(script)
        if at >= 0:
            browser.picture(args.shots / f"{width}-{anchor}.png", at, width, HEIGHT)
    print(f"{width} wide: {len(faults)} fault(s)")
    return faults


def play(browser, n_wanted):
    n = browser.evaluate(N_PLAYERS)
    n_played = min(n, n_wanted or n)
    chosen = [i * n // n_played for i in range(n_played)] if n_played else []
    faults = [fault for fault in (browser.evaluate(PLAY % i) for i in chosen) if fault]
    print(f"{len(chosen)} of {n} players tried, {len(chosen) - len(faults)} play")
    return faults if n else ["there is no player"]


if __name__ == "__main__":
    main()
