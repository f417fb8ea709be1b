"""Runs what the console makes of texts (`/ui/text.js`, as the server sends it) in V8: console_client.py BASE_URL CHECK."""

import codecs
import json
import re
import sys
import urllib.request

from py_mini_racer import MiniRacer

from asked import ASK

PATIENCE = 60


class Server:
    def __init__(self, base):
        self.base = base

    def get(self, path):
        with urllib.request.urlopen(self.base.removesuffix("/v1") + path, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def post(self, body):
        """The bytes that answer `body`."""
        asked = urllib.request.Request(f"{self.base}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.read()


class Script:
    """The page's module, as a script: what it exports has a name."""

    def __init__(self, server):
        self.engine = MiniRacer()
        self.engine.eval(re.sub(r"^export ", "", server.get("/ui/text.js"), flags=re.M))

    def value(self, expression):
        return json.loads(self.engine.eval(f"JSON.stringify({expression})"))

    def call(self, function, *arguments):
        return self.value(f"{function}({', '.join(map(json.dumps, arguments))})")


def events(script, stream, size):
    """The data of a stream that comes in pieces of `size` bytes."""
    script.engine.eval("var take = events()")
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [decoder.decode(stream[at : at + size]) for at in range(0, len(stream), size)]
    return [data for piece in pieces for data in script.call("take", piece)]


def streams(server, script):
    """What is read of a real stream is the answer that comes whole, however the bytes are cut."""
    past = [{"question": "Never answered", "answer": ""}, {"question": ASK[0]["content"], "answer": "Paris."}]
    body = script.call("parameters", [["temperature", "0"], ["top_p", ""], ["max_completion_tokens", "24"], ["stop", "\r\nnever said\n"]])
    body["messages"] = script.call("messages", " Be brief.", past, "And of Peru? Größe?")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"], body
    assert body | {"messages": []} == {"temperature": 0, "max_completion_tokens": 24, "stop": ["never said"], "messages": []}, body
    whole = json.loads(server.post(body))
    stream = server.post(body | {"stream": True, "stream_options": {"continuous_usage_stats": True}})
    for cut in (stream, stream.replace(b"\n", b"\r\n"), b": ping\n\n" + stream.replace(b"\n\n", b"\n\n: ping\n\n")):
        for size in (1, 7, len(cut)):
            *chunks, done = events(script, cut, size)
            chunks = [json.loads(chunk) for chunk in chunks]
            deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
            assert "".join(deltas) == whole["choices"][0]["message"]["content"], (size, deltas)
            assert done == "[DONE]" and chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"], chunks[-1]
    assert events(script, b"data: a\ndata:  b\n\nevent: x\n\ndata: not ended\n", 1) == ["a\n b"]


def texts(server, script):
    """Code stands between fences; everything else is text."""
    text = lambda text: {"kind": "text", "text": text}
    code = lambda text, language="": {"kind": "code", "language": language, "text": text}
    for answer, expected in [
        ("", []),
        (" \n\n", []),
        ("One\n\ntwo <b>&amp;</b>", [text("One\n\ntwo <b>&amp;</b>")]),
        ("Look:\n```python\nprint(1)\n\n```\nSo.", [text("Look:"), code("print(1)\n", "python"), text("So.")]),
        ("```\n~~~\n``\n````\nafter", [code("~~~\n``"), text("after")]),
        ("~~~~ c++ 11\n~~~\n```\n~~~~", [code("~~~\n```", "c++")]),
        ("```js\nlet a", [code("let a", "js")]),
        ("```", [code("")]),
        ("a ```b``` c\n```in one``` line", [text("a ```b``` c\n```in one``` line")]),
        ("\n    ```\nnot fenced", [text("```\nnot fenced")]),
    ]:
        found = script.call("parts", answer)
        assert found == expected, (answer, found)
    # While an answer grows its parts stay what they are, and more come.
    kinds = []
    answer = "Text.\n\n```c\nint a;\n```\nMore.\n~~~\nb\n"
    for end in range(len(answer) + 1):
        before, kinds = kinds, [part["kind"] for part in script.call("parts", answer[:end])]
        assert kinds[: len(before)] == before, (answer[:end], kinds)
    assert kinds == ["text", "code", "text", "code"]


def words(server, script):
    """Refusals and accounts, in words."""
    refusal = lambda *of: script.call("refusal", *of)
    assert refusal(401, None, {"message": "send a key"}) == "The server wants a key."
    assert refusal(429, "7", {"message": "60 requests a minute"}) == "That was too much for now: 60 requests a minute. Try again in 7 s."
    assert refusal(503, "Thu, 01 Jan 2026 00:00:00 GMT", None) == "The server cannot answer now: it says no more than 503."
    assert refusal(400, None, {"message": "`top_k` is too large"}) == "The server refuses: `top_k` is too large."
    assert refusal(502, None, None).startswith("The server failed: ")
    usage = {"completion_tokens": 11, "prompt_tokens": 5}
    run = {"usage": usage, "asked": 1000, "first": 1250, "last": 2250, "reason": "length"}
    assert script.call("account", run) == "11 tokens to a prompt of 5 · 10.0 tokens/s · first after 0.25 s · ended by the limit of tokens"
    assert script.call("account", run | {"reason": "stop", "last": 1299}) == "11 tokens to a prompt of 5 · first after 0.25 s"
    assert script.value("account({ usage: null, asked: 0, reason: 'stopped' })") == "stopped by you"
    assert script.value("account({ usage: null, asked: 0, reason: null })") == ""


def main():
    server = Server(sys.argv[1])
    globals()[sys.argv[2]](server, Script(server))


if __name__ == "__main__":
    main()
