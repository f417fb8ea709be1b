"""What both gRPC clients ask, and what they must see. Messages are made by `make`, which knows their classes by name."""

import json
import time
import urllib.request

import grpc

PROMPT = "The capital of France is"
# The demo model's context holds so many after a short prompt: more than are computed before a client has cancelled.
MANY = 900
# Seconds until a check is given up; many times what any should take.
PATIENCE = 60


def channel(address):
    return grpc.insecure_channel(address)


def request(make, prompt, max_tokens, **more):
    parameters = make("GenerationParameters")(max_tokens=max_tokens, temperature=0, **more)
    return make("GenerateRequest")(prompt=make("Input")(text=prompt), parameters=parameters)


def engine(http):
    with urllib.request.urlopen(f"{http}/version", timeout=PATIENCE) as answer:
        return json.load(answer)["engine"]


def until(what, holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


def streaming(make, generate, http):
    """A stream has the text that HTTP gives whole, in pieces, and its usage last."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 12, "temperature": 0}).encode()
    asked = urllib.request.Request(f"{http}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        whole = json.load(answer)
    pieces = list(generate(request(make, PROMPT, 12), timeout=PATIENCE))
    kinds = [piece.WhichOneof("piece") for piece in pieces]
    assert kinds[-2:] == ["end", "usage"] and kinds.count("text") > 1, kinds
    assert "".join(piece.text.text for piece in pieces) == whole["choices"][0]["text"]
    assert pieces[-1].usage.completion_tokens == whole["usage"]["completion_tokens"]


def cancelling(make, generate, http):
    """A stream that is cancelled says so, and frees what it held; the next call works."""
    # So that what may stay in use afterwards is none: blocks that are cached count as free.
    until("the server is idle", lambda: engine(http)["running"] == 0)
    call = generate(request(make, "Once", MANY, ignore_eos=True), timeout=PATIENCE)
    assert next(call).WhichOneof("piece") == "text"
    # What the engine says of itself is as of its last whole step, which may have been before this stream's first.
    until("it runs", lambda: all(engine(http)[held] > 0 for held in ("running", "kv_used")))
    call.cancel()
    try:
        seen = sum(1 for _ in call)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.CANCELLED, error
    else:
        raise AssertionError(f"it ended, after {seen} more pieces")
    until("nothing is held", lambda: all(engine(http)[held] == 0 for held in ("running", "waiting", "kv_used")))
    streaming(make, generate, http)
