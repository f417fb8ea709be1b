"""Holds a server to OpenAI's own client, unmodified: openai_client.py BASE_URL CHECK. Exit 0 if the check passes."""

import asyncio
import base64
import json
import select
import socket
import struct
import sys
import threading

import openai
from openai import OpenAI

from asked import ASK, WEATHER

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}


def models(client, model):
    assert [m.id for m in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def completions(client, model):
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=2)
    assert answer.choices[0].text == " Paris.", answer
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2 and answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, stop=["main"])
    assert answer.choices[0].finish_reason == "stop" and "main" not in answer.choices[0].text, answer


def prompts(client, model):
    texts = ["The capital of France is", "The capital of Peru is"]
    answer = client.completions.create(model=model, prompt=texts, temperature=0, max_tokens=2)
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].text == " Paris." and answer.choices[1].text.startswith(" Lim"), answer
    alone = [client.completions.create(model=model, prompt=text, temperature=0, max_tokens=2) for text in texts]
    assert [c.text for c in answer.choices] == [a.choices[0].text for a in alone]


def chat(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, temperature=0)
    message = answer.choices[0].message
    assert message.role == "assistant" and "Paris" in message.content, answer
    assert answer.choices[0].finish_reason == "stop" and answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("fp_") and answer.usage.completion_tokens > 0
    # An answer goes back as it came.
    more = ASK + [message, {"role": "user", "content": [{"type": "text", "text": "What is the capital of Peru?"}]}]
    assert "Lima" in client.chat.completions.create(model=model, messages=more, temperature=0).choices[0].message.content


def system(client, model):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be kind."}] + ASK
    assert client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=4).usage.completion_tokens


def streaming(client, model):
    whole = client.chat.completions.create(model=model, messages=ASK, temperature=0)
    chunks = list(client.chat.completions.create(
        model=model, messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage, chunks[-1]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content

    async def together():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as other:
            stream = await other.completions.create(
                model=model, prompt="The capital of France is", temperature=0, max_tokens=6, stream=True)
            return "".join([c.choices[0].text async for c in stream])

    assert asyncio.run(together()).startswith(" Paris.")
    with client.chat.completions.stream(model=model, messages=ASK, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole.choices[0].message.content


def choices(client, model):
    ask = dict(model=model, messages=ASK, temperature=1.5, seed=7, n=3)
    answer = client.chat.completions.create(**ask)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    texts = [c.message.content for c in answer.choices]
    assert len(set(texts)) > 1, texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts, (streamed, texts)
    best = client.completions.create(model=model, prompt="Peru is", n=2, best_of=4, seed=1, max_tokens=8, extra_body={"ignore_eos": True})
    assert len(best.choices) == 2 and best.usage.completion_tokens == 32


def logprobs(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in content).decode() == answer.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob == t.logprob <= 0 for t in content)
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=3, logprobs=2)
    of = answer.choices[0].logprobs
    assert "".join(of.tokens) == answer.choices[0].text and of.text_offset[0] == 0, of
    assert all(len(top) == 2 for top in of.top_logprobs)


def echo(client, model):
    ask = dict(model=model, prompt="The capital of France is", temperature=0, echo=True)
    answer = client.completions.create(**ask, max_tokens=2, logprobs=1)
    of = answer.choices[0].logprobs
    assert answer.choices[0].text == "The capital of France is Paris.", answer
    assert of.token_logprobs[0] is None and all(l <= 0 for l in of.token_logprobs[1:])
    assert len(of.tokens) == answer.usage.total_tokens
    assert [answer.choices[0].text[at:].startswith(t) for at, t in list(zip(of.text_offset, of.tokens))[-2:]] == [True, True]
    only = client.completions.create(**ask, max_tokens=0, logprobs=1)
    assert only.choices[0].text == "The capital of France is" and only.usage.completion_tokens == 0
    assert client.completions.create(**ask, max_tokens=0).choices[0].text == "The capital of France is"


def json_schema(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=ASK, response_format=form, seed=3, max_tokens=200)
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"city", "size"} and isinstance(value["size"], int), answer
    answer = client.chat.completions.create(
        model=model, messages=ASK, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, seed=3)
    assert answer.choices[0].message.content in ("yes", "no"), answer
    answer = client.chat.completions.create(
        model=model, messages=ASK, extra_body={"structured_outputs": {"regex": "[a-f]{4}x"}}, seed=3)
    assert answer.choices[0].message.content.endswith("x") and len(answer.choices[0].message.content) == 5, answer


def bad_schema(client, model):
    for form in ({"type": 3}, {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}):
        refused(openai.BadRequestError, "response_format", lambda: client.chat.completions.create(
            model=model, messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": form}}))
    refused(openai.BadRequestError, "structured_outputs", lambda: client.chat.completions.create(
        model=model, messages=ASK, extra_body={"structured_outputs": {"grammar": "start: nothing"}}))
    chat(client, model)


def tools(client, model):
    ask = dict(model=model, messages=ASK, tools=[WEATHER, TIME], seed=5, max_tokens=300)
    required = client.chat.completions.create(**ask, tool_choice="required", parallel_tool_calls=False)
    calls = required.choices[0].message.tool_calls
    assert len(calls) == 1 and calls[0].function.name in ("get_weather", "get_time"), required
    json.loads(calls[0].function.arguments)
    assert required.choices[0].finish_reason == "tool_calls"
    named = dict(tool_choice={"type": "function", "function": {"name": "get_weather"}})
    answer = client.chat.completions.create(**ask, **named)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}, answer
    streamed, name = "", None
    for chunk in client.chat.completions.create(**ask, **named, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name = delta.function.name or name
            streamed += delta.function.arguments or ""
    assert (name, streamed) == ("get_weather", call.function.arguments)
    # The call and its answer go back.
    more = ASK + [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    assert client.chat.completions.create(model=model, messages=more, tools=[WEATHER], max_tokens=4).choices


def auto_tools(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], tool_choice="none", temperature=0)
    assert answer.choices[0].message.tool_calls is None and "Paris" in answer.choices[0].message.content
    assert client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], temperature=0, max_tokens=8).choices


def embeddings(client, model):
    # The client asks for base64 unless told otherwise.
    packed = client.embeddings.create(model=model, input=["Paris", "Lima"])
    plain = client.embeddings.create(model=model, input=["Paris", "Lima"], encoding_format="float")
    assert [len(e.embedding) for e in plain.data] == [256, 256] and plain.usage.prompt_tokens > 2
    for a, b in zip(packed.data, plain.data):
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-6
        assert abs(sum(x * x for x in b.embedding) - 1) < 1e-4
    raw = client.embeddings.with_raw_response.create(model=model, input="Paris", encoding_format="base64")
    text = json.loads(raw.text)["data"][0]["embedding"]
    assert len(struct.unpack("<256f", base64.b64decode(text))) == 256


def refused(kind, param, ask):
    try:
        ask()
    except openai.APIStatusError as error:
        assert type(error) is kind, repr(error)
        assert error.param == param, (error.param, error.body)
        assert error.request_id, "no request id"
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def errors(client, model):
    ask = lambda **more: lambda: client.chat.completions.create(**({"model": model, "messages": ASK} | more))
    refused(openai.BadRequestError, "temperature", ask(temperature=3))
    refused(openai.BadRequestError, "n", ask(n=10**9))
    refused(openai.BadRequestError, "messages", ask(messages=[]))
    refused(openai.BadRequestError, "frobnicate", ask(extra_body={"frobnicate": 1}))
    error = refused(openai.BadRequestError, "messages", ask(max_completion_tokens=10_000))
    assert error.code == "context_length_exceeded"
    error = refused(openai.NotFoundError, "model", ask(model="gpt-4o"))
    assert error.code == "model_not_found"
    chat(client, model)


def retries(client, model):
    """The queue is filled; the client is refused, waits as it is told, and is answered."""
    seen, flood = [], []

    def leave():
        while flood:
            flood.pop().close()

    def look(response):
        seen.append((response.status_code, response.headers.get("retry-after")))
        leave()

    http = openai.DefaultHttpxClient(event_hooks={"response": [look]})
    patient = OpenAI(base_url=client.base_url, api_key="none", max_retries=8, timeout=120, http_client=http)
    # Where somebody left the queue just before the client asked, it was let in, and nothing was seen of refusals. Nor does it wait for
    # all the others then.
    for _ in range(5):
        fill(client.base_url, flood)
        seen.clear()
        let_in = threading.Timer(10, leave)
        let_in.start()
        answer = patient.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=2)
        let_in.cancel()
        assert answer.choices[0].text == " Paris.", answer
        assert seen[-1][0] == 200, seen
        if seen[0][0] == 503:
            assert int(seen[0][1]) >= 1, seen
            return
    raise AssertionError("never refused")


def fill(base, flood):
    """Sends more than run and wait at once; returns when all of the last ones were refused. That some are says little: those that come
    together all wait before the first of them runs, and then there are places again."""
    body = json.dumps({"prompt": "Peru", "max_tokens": 1000, "ignore_eos": True, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    def refused(count):
        sent = [socket.create_connection((base.host, base.port)) for _ in range(count)]
        flood.extend(sent)
        for one in sent:
            one.sendall(head.encode() + body)
        replies = []
        # One that is let in says nothing for long.
        while sent and (readable := select.select(sent, [], [], 2)[0]):
            replies += [one.recv(4096) for one in readable]
            sent = [one for one in sent if one not in readable]
        refusals = [reply for reply in replies if reply.startswith(b"HTTP/1.1 503")]
        assert all(b"retry-after: " in refusal and b'"overloaded"' in refusal for refusal in refusals), refusals
        return len(refusals)

    for count in (400, 80, *[8] * 40):
        if refused(count) == count:
            return
    raise AssertionError("the queue does not fill")


def keys(client, model):
    """Started with a file of keys; the right one is in the argument after the check."""
    try:
        client.models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("no key, and answered")
    chat(OpenAI(base_url=client.base_url, api_key=sys.argv[3]), model)


def main():
    client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
    globals()[sys.argv[2]](client, "breeze")


if __name__ == "__main__":
    main()
