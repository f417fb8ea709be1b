"""Holds a server to a gRPC client that has nothing but its address, and learns the rest by reflection:
reflection_client.py ADDRESS CHECK HTTP_URL. Exit 0 if the check passes."""

import sys

from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import streams

SERVICE = "tramontane.v1.Inference"


def main():
    address, check, http = sys.argv[1:]
    with streams.channel(address) as channel:
        described = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in described.get_services(), described.get_services()
        pool = DescriptorPool(described)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("Generate")
        assert method.server_streaming and not method.client_streaming
        make = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tramontane.v1.{name}"))
        generate = channel.unary_stream(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        getattr(streams, check)(make, generate, http)


if __name__ == "__main__":
    main()
