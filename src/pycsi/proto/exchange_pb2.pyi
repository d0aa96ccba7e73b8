from pycsi.proto import csi_pb2 as _csi_pb2
from pycsi.proto import transfers_pb2 as _transfers_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SendRequest(_message.Message):
    __slots__ = ("snapshot_id", "source_volume_id", "departing")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    DEPARTING_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    source_volume_id: str
    departing: Departing
    def __init__(self, snapshot_id: _Optional[str] = ..., source_volume_id: _Optional[str] = ..., departing: _Optional[_Union[Departing, _Mapping]] = ...) -> None: ...

class Departing(_message.Message):
    __slots__ = ("to_node", "point", "since")
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    to_node: str
    point: str
    since: str
    def __init__(self, to_node: _Optional[str] = ..., point: _Optional[str] = ..., since: _Optional[str] = ...) -> None: ...

class SendResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ReceiveRequest(_message.Message):
    __slots__ = ("volume_id", "begin", "data", "arrival")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    begin: _csi_pb2.CreateVolumeRequest
    data: bytes
    arrival: Arrival
    def __init__(self, volume_id: _Optional[str] = ..., begin: _Optional[_Union[_csi_pb2.CreateVolumeRequest, _Mapping]] = ..., data: _Optional[bytes] = ..., arrival: _Optional[_Union[Arrival, _Mapping]] = ...) -> None: ...

class Arrival(_message.Message):
    __slots__ = ("volume", "content", "original")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    volume: _csi_pb2.CreateVolumeRequest
    content: _transfers_pb2.Content
    original: Original
    def __init__(self, volume: _Optional[_Union[_csi_pb2.CreateVolumeRequest, _Mapping]] = ..., content: _Optional[_Union[_transfers_pb2.Content, _Mapping]] = ..., original: _Optional[_Union[Original, _Mapping]] = ...) -> None: ...

class Original(_message.Message):
    __slots__ = ("volume_id", "pool_uuid", "created")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_UUID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    pool_uuid: str
    created: float
    def __init__(self, volume_id: _Optional[str] = ..., pool_uuid: _Optional[str] = ..., created: _Optional[float] = ...) -> None: ...

class ReceiveResponse(_message.Message):
    __slots__ = ("ready", "volume", "refused", "arrived")
    class Ready(_message.Message):
        __slots__ = ("point", "complete", "toward")
        POINT_FIELD_NUMBER: _ClassVar[int]
        COMPLETE_FIELD_NUMBER: _ClassVar[int]
        TOWARD_FIELD_NUMBER: _ClassVar[int]
        point: str
        complete: bool
        toward: str
        def __init__(self, point: _Optional[str] = ..., complete: _Optional[bool] = ..., toward: _Optional[str] = ...) -> None: ...
    class Refused(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Arrived(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    ready: ReceiveResponse.Ready
    volume: _csi_pb2.Volume
    refused: ReceiveResponse.Refused
    arrived: ReceiveResponse.Arrived
    def __init__(self, ready: _Optional[_Union[ReceiveResponse.Ready, _Mapping]] = ..., volume: _Optional[_Union[_csi_pb2.Volume, _Mapping]] = ..., refused: _Optional[_Union[ReceiveResponse.Refused, _Mapping]] = ..., arrived: _Optional[_Union[ReceiveResponse.Arrived, _Mapping]] = ...) -> None: ...

class DepartRequest(_message.Message):
    __slots__ = ("volume_id", "to_node", "mark")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    to_node: str
    mark: bool
    def __init__(self, volume_id: _Optional[str] = ..., to_node: _Optional[str] = ..., mark: _Optional[bool] = ...) -> None: ...

class DepartResponse(_message.Message):
    __slots__ = ("description", "original", "in_use", "point", "left")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    description: _transfers_pb2.Description
    original: Original
    in_use: str
    point: str
    left: bool
    def __init__(self, description: _Optional[_Union[_transfers_pb2.Description, _Mapping]] = ..., original: _Optional[_Union[Original, _Mapping]] = ..., in_use: _Optional[str] = ..., point: _Optional[str] = ..., left: _Optional[bool] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("volume_id", "point")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    point: str
    def __init__(self, volume_id: _Optional[str] = ..., point: _Optional[str] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiscardRequest(_message.Message):
    __slots__ = ("volume_id",)
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    def __init__(self, volume_id: _Optional[str] = ...) -> None: ...

class DiscardResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StayRequest(_message.Message):
    __slots__ = ("volume_id",)
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    def __init__(self, volume_id: _Optional[str] = ...) -> None: ...

class StayResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("volume_id", "original_id", "point")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    original_id: str
    point: str
    def __init__(self, volume_id: _Optional[str] = ..., original_id: _Optional[str] = ..., point: _Optional[str] = ...) -> None: ...

class AbandonRequest(_message.Message):
    __slots__ = ("volume_id", "point")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    point: str
    def __init__(self, volume_id: _Optional[str] = ..., point: _Optional[str] = ...) -> None: ...

class AbandonResponse(_message.Message):
    __slots__ = ("point",)
    POINT_FIELD_NUMBER: _ClassVar[int]
    point: str
    def __init__(self, point: _Optional[str] = ...) -> None: ...
