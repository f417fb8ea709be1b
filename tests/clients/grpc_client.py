"""Holds a server to a gRPC client as Python programs have it, made from proto/ with grpcio-tools:
grpc_client.py ADDRESS CHECK HTTP_URL PROTO_FOLDER. Exit 0 if the check passes."""

import sys
import tempfile

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

import streams


def stubs(folder, into):
    """The modules that grpcio-tools makes of the service's file."""
    file = "tramontane/v1/inference.proto"
    made = protoc.main(["protoc", f"-I{folder}", f"--python_out={into}", f"--grpc_python_out={into}", file])
    assert made == 0, f"protoc: {made}"
    sys.path.insert(0, into)
    from tramontane.v1 import inference_pb2, inference_pb2_grpc

    return inference_pb2, inference_pb2_grpc


def details(error, kind):
    """The detail of this kind that an error carries."""
    for packed in rpc_status.from_call(error).details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {error}")


def errors(messages, stub):
    """What is wrong has a code, and names its field."""
    bad = streams.request(lambda name: getattr(messages, name), "x", 4, top_p=7)
    try:
        list(stub.Generate(bad, timeout=streams.PATIENCE))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert details(error, error_details_pb2.BadRequest).field_violations[0].field == "top_p"
    else:
        raise AssertionError("it was answered")


def chat(messages, stub):
    """A conversation, the models, and a text's embedding."""
    assert [model.id for model in stub.Models(messages.ModelsRequest()).models] == ["breeze"]
    asked = messages.ChatRequest(
        messages=[messages.ChatMessage(role="user", content="What is the capital of France?")],
        parameters=messages.GenerationParameters(temperature=0),
    )
    assert "Paris" in "".join(piece.text.text for piece in stub.Chat(asked, timeout=streams.PATIENCE))
    embedded = stub.Embed(messages.EmbedRequest(inputs=[messages.Input(text="Paris")]), timeout=streams.PATIENCE)
    assert len(embedded.embeddings[0].values) == 256
    assert stub.Tokenize(messages.TokenizeRequest(text="Paris"), timeout=streams.PATIENCE).tokens


def main():
    address, check, http, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as into, streams.channel(address) as channel:
        messages, services = stubs(folder, into)
        stub = services.InferenceStub(channel)
        if check in ("streaming", "cancelling"):
            getattr(streams, check)(lambda name: getattr(messages, name), stub.Generate, http)
        else:
            globals()[check](messages, stub)


if __name__ == "__main__":
    main()
