"""The gRPC services: each RPC reads its protobuf request, calls one operation, and replies."""
