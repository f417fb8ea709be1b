"""Holds a server to Mistral's own client, unmodified: mistral_client.py BASE_URL CHECK. Exit 0 if the check passes."""

import json
import sys

import mistralai
try:
    from mistralai import Mistral
except ImportError:  # since 2.0
    from mistralai.client import Mistral

from asked import ASK, WEATHER


def models(client, model):
    assert [m.id for m in client.models.list().data] == [model]
    assert client.models.retrieve(model_id=model).id == model


def chat(client, model):
    answer = client.chat.complete(model=model, messages=ASK, temperature=0)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0
    safe = client.chat.complete(model=model, messages=ASK, temperature=0, safe_prompt=True, random_seed=3, max_tokens=4)
    assert safe.usage.prompt_tokens > answer.usage.prompt_tokens
    begun = ASK + [{"role": "assistant", "content": "The capital of", "prefix": True}]
    assert "Paris" in client.chat.complete(model=model, messages=begun, temperature=0).choices[0].message.content


def streaming(client, model):
    whole = client.chat.complete(model=model, messages=ASK, temperature=0)
    events = [event.data for event in client.chat.stream(model=model, messages=ASK, temperature=0)]
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == whole.choices[0].message.content
    assert events[-1].choices[0].finish_reason == "stop"


def tools(client, model):
    for choice in ("any", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.complete(model=model, messages=ASK, tools=[WEATHER], tool_choice=choice, random_seed=3, max_tokens=300)
        call = answer.choices[0].message.tool_calls[0]
        arguments = call.function.arguments
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        assert call.function.name == "get_weather" and set(arguments) == {"city"}, answer


def json_schema(client, model):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema, "strict": True}}
    answer = client.chat.complete(model=model, messages=ASK, response_format=form, random_seed=3, max_tokens=60)
    assert set(json.loads(answer.choices[0].message.content)) == {"ok"}, answer


def embeddings(client, model):
    answer = client.embeddings.create(model=model, inputs=["Paris", "Lima"])
    assert [len(e.embedding) for e in answer.data] == [256, 256]


def errors(client, model):
    for ask, status in (
        (lambda: client.chat.complete(model=model, messages=ASK, temperature=9), 400),
        (lambda: client.chat.complete(model="mistral-large", messages=ASK), 404),
        (lambda: client.fim.complete(model=model, prompt="def f("), 400),
    ):
        try:
            ask()
        except Exception as error:  # its classes have moved between versions
            assert getattr(error, "status_code", None) == status, repr(error)
        else:
            raise AssertionError(f"{status} was expected")


def main():
    client = Mistral(server_url=sys.argv[1].removesuffix("/v1"), api_key="none", timeout_ms=120_000)
    globals()[sys.argv[2]](client, "breeze")


if __name__ == "__main__":
    main()
