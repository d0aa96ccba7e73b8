from pycsi.proto import csi_pb2 as _csi_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SendRequest(_message.Message):
    __slots__ = ("snapshot_id", "source_volume_id")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    source_volume_id: str
    def __init__(self, snapshot_id: _Optional[str] = ..., source_volume_id: _Optional[str] = ...) -> None: ...

class SendResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ReceiveRequest(_message.Message):
    __slots__ = ("volume_id", "begin", "data")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    begin: _csi_pb2.CreateVolumeRequest
    data: bytes
    def __init__(self, volume_id: _Optional[str] = ..., begin: _Optional[_Union[_csi_pb2.CreateVolumeRequest, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReceiveResponse(_message.Message):
    __slots__ = ("ready", "volume", "refused")
    class Ready(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Refused(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ready: ReceiveResponse.Ready
    volume: _csi_pb2.Volume
    refused: ReceiveResponse.Refused
    def __init__(self, ready: _Optional[_Union[ReceiveResponse.Ready, _Mapping]] = ..., volume: _Optional[_Union[_csi_pb2.Volume, _Mapping]] = ..., refused: _Optional[_Union[ReceiveResponse.Refused, _Mapping]] = ...) -> None: ...
