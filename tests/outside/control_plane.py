"""The control plane through reflection alone: nothing here was generated from our .proto files."""

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from processes import eventually

WITHIN = 10


class ControlPlane:
    """Calls methods by name, with dictionaries."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def services(self):
        return set(self.database.get_services())

    def call(self, service, method, **fields):
        found = self.pool.FindServiceByName(f"forebay.v1.{service}").FindMethodByName(method)
        ask = message_factory.GetMessageClass(found.input_type)
        answer = message_factory.GetMessageClass(found.output_type)
        stub = self.channel.unary_unary(
            f"/forebay.v1.{service}/{method}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        answered = stub(json_format.ParseDict(fields, ask()), timeout=WITHIN)
        return json_format.MessageToDict(answered)

    def register(self, model, url, **fields):
        endpoints = [{"url": url}]
        return self.call(
            "ModelRegistry", "CreateModel", model={"id": model, "endpoints": endpoints, **fields}
        )

    def everywhere(self):
        """Waits until every worker has applied the newest revision: an answer says that it is stored, not that it is served."""

        def applied():
            rollout = self.call("Fleet", "GetRollout")
            return rollout.get("complete") and rollout.get("applied")

        eventually("the newest revision is everywhere", applied)


def bad_fields(error):
    """The fields that an error names, with what is wrong with each."""
    for detail in rpc_status.from_call(error).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return {violation.field: violation.description for violation in bad.field_violations}
    raise AssertionError(f"no google.rpc.BadRequest in {error}")
