"""The console in a browser, Debian's Chromium, on a real server: console_browser.py BASE_URL CHECK [KEY]. Exit 0 if the check passes.

Answers that no model gives at will (code, refusals) are made here in the server's place; everything else is the server's."""

import json
import sys
import time
import urllib.request

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESK = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}
CHAT = "**/v1/chat/completions"
LAST = "#chat > :last-child"
# Seconds until a check is given up; many times what any should take.
PATIENCE = 60


class Console:
    """The page as somebody uses it."""

    def __init__(self, browser, base, device):
        self.base = base.removesuffix("/v1")
        self.complaints = []
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **device)
        context.set_default_timeout(PATIENCE * 1000)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.hear(said))
        self.page.on("request", lambda asked: asked.url.startswith(self.base) or self.complaints.append(asked.url))
        self.page.goto(f"{self.base}/ui")

    def hear(self, said):
        # What is refused on purpose is an answer.
        if said.type in ("error", "warning") and "Failed to load resource" not in said.text:
            self.complaints.append(said.text)

    def until(self, holds):
        # The page's policy lets nobody wait inside it with a text that is evaluated.
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(holds):
            assert time.monotonic() < end, f"never: {holds}"
            self.page.wait_for_timeout(20)

    def knows_models(self):
        self.until("document.querySelector('#model').options.length > 0")

    def set(self, name, value):
        self.page.evaluate("document.querySelector('#settings').open = true")
        self.page.fill(f"[name={name}]", value)

    def ask(self, question):
        self.page.fill("#question", question)
        self.page.click("#send")

    def answered(self):
        """The answer, when it has ended."""
        self.until("document.querySelector('#chat').getAttribute('aria-busy') === 'false'")
        return self.page.inner_text(f"{LAST} .body")

    def says(self, question):
        self.ask(question)
        return self.answered()

    def text(self, what):
        return self.page.inner_text(f"{LAST} {what}")

    def count(self, what):
        return self.page.locator(what).count()

    def do(self, what):
        self.page.click(f"{LAST} [data-do={what}]")

    def instead(self, status, body, **headers):
        """Answers questions in the server's place."""
        self.page.unroute(CHAT)
        self.page.route(CHAT, lambda route: route.fulfill(status=status, body=body, headers=headers))


def stream(*pieces):
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def chat(console):
    """A conversation goes on, is edited, asked again and forgotten."""
    console.knows_models()
    console.set("temperature", "0")
    assert "Paris" in console.says("What is the capital of France?")
    assert "tokens to a prompt of" in console.text(".meter")
    assert "Lima" in console.says("What is the capital of Peru?")
    assert "Lima" in console.page.inner_text("#heard")
    console.do("copy")
    console.until("navigator.clipboard.readText().then((text) => text.includes('Lima'))")
    console.do("retry")
    assert "Lima" in console.answered()
    console.do("edit")
    assert console.page.input_value("#question") == "What is the capital of Peru?" and console.count("#chat > li") == 1
    console.page.press("#question", "Shift+Enter")
    console.page.type("#question", "And of Kenya?")
    console.page.press("#question", "Enter")
    console.answered()
    assert console.text(".question .said") == "What is the capital of Peru?\nAnd of Kenya?"
    console.page.click("#new")
    assert console.count("#chat > li") == 0
    console.until("document.querySelectorAll('#facts div').length > 5 && document.querySelectorAll('#load div').length > 5")
    assert "blake3:" in console.page.inner_text("#facts") and "tramontane" in console.page.inner_text("#load")


def harmless(console):
    """HTML that a model writes is text, code a block of its own, and nothing makes a phone's page wider."""
    console.knows_models()
    hostile = "<img src=x onerror=alert(1)><b>bold</b>" + "long" * 60
    console.instead(200, stream(hostile, "\n\n```py", "thon\nprint('", "<i>')" + " " * 200 + "# far\n```\nSo."), **{"content-type": "text/event-stream"})
    assert hostile in console.says("<script>alert(2)</script>")
    assert console.count("#chat img, #chat b, #chat i, #chat script") == 0
    assert console.text("pre").startswith("print('<i>')") and console.text("figcaption span") == "python"
    assert console.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    console.do("copy-code")
    console.until("navigator.clipboard.readText().then((text) => text.startsWith(`print('<i>')`))")


def refused(console):
    """What goes wrong is said in words, and can be asked again."""
    console.knows_models()
    console.set("temperature", "0")
    error = {"error": {"message": "60 requests a minute", "type": "x", "param": None, "code": "rate_limit_exceeded"}}
    console.instead(429, json.dumps(error), **{"content-type": "application/json", "retry-after": "17"})
    assert console.says("What is the capital of France?") == ""
    assert console.text(".failure") == "That was too much for now: 60 requests a minute. Try again in 17 s."
    console.instead(200, stream("Half an ans").removesuffix("data: [DONE]\n\n"), **{"content-type": "text/event-stream"})
    console.do("retry")
    assert console.answered() == "Half an ans" and console.text(".failure") == "The answer broke off."
    console.page.unroute(CHAT)
    console.do("retry")
    assert "Paris" in console.answered() and console.text(".failure") == ""
    console.set("stop", "1\n2\n3\n4\n5")
    console.says("And now?")
    assert "`stop`" in console.text(".failure")
    console.set("temperature", "3")
    console.ask("Too hot?")
    assert console.count("#chat > li") == 2 and console.page.input_value("#question") == "Too hot?"


def stopped(console):
    """An answer is stopped by Escape and by the button, and its sequence leaves the engine."""
    console.knows_models()
    console.page.route(CHAT, lambda route: route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True})))
    for stop in (lambda: console.page.keyboard.press("Escape"), lambda: console.page.click("#stop")):
        console.ask("Tell me of all countries.")
        console.until(f"document.querySelector('{LAST} .body').textContent.length > 20")
        stop()
        assert len(console.answered()) > 20 and "stopped by you" in console.text(".meter")
    end = time.monotonic() + PATIENCE
    running = 1
    while running:
        assert time.monotonic() < end, "never: the engine is idle"
        with urllib.request.urlopen(f"{console.base}/version", timeout=PATIENCE) as answer:
            running = json.load(answer)["engine"]["running"]


def keys(console):
    """A key is asked for when the server wants one, and kept in the tab alone. The right one is in the argument after the check."""
    page, key = console.page, sys.argv[3]
    page.wait_for_selector("#door[open]")
    page.fill("#door-key", "sk-another")
    page.press("#door-key", "Enter")
    console.until("document.querySelector('#door-why').textContent === 'The key was not accepted.'")
    page.keyboard.press("Escape")
    console.ask("What is the capital of France?")
    page.wait_for_selector("#door[open]")
    page.click("#door-close")
    assert console.answered() == "" and console.text(".failure") == "The server wants a key."
    console.do("retry")
    page.wait_for_selector("#door[open]")
    page.fill("#door-key", key)
    page.press("#door-key", "Enter")
    assert console.answered() != ""
    console.knows_models()
    page.reload()
    console.knows_models()
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[key], 0, ""]
    page.click("#key")
    assert page.evaluate("sessionStorage.length") == 0


def main():
    device = PHONE if sys.argv[2] == "harmless" else DESK
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        console = Console(browser, sys.argv[1], device)
        globals()[sys.argv[2]](console)
        assert console.complaints == [], console.complaints
        browser.close()


if __name__ == "__main__":
    main()
