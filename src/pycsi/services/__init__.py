"""The gRPC services: protobuf in, one call of what lies below, protobuf out."""
