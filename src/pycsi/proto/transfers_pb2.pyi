from pycsi.proto import csi_pb2 as _csi_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MoveRequest(_message.Message):
    __slots__ = ("volume_id", "pool", "prepare", "to_node")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    pool: str
    prepare: bool
    to_node: str
    def __init__(self, volume_id: _Optional[str] = ..., pool: _Optional[str] = ..., prepare: _Optional[bool] = ..., to_node: _Optional[str] = ...) -> None: ...

class MoveResponse(_message.Message):
    __slots__ = ("step", "ended")
    class Ended(_message.Message):
        __slots__ = ("from_pool", "moved")
        FROM_POOL_FIELD_NUMBER: _ClassVar[int]
        MOVED_FIELD_NUMBER: _ClassVar[int]
        from_pool: str
        moved: Description
        def __init__(self, from_pool: _Optional[str] = ..., moved: _Optional[_Union[Description, _Mapping]] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    step: str
    ended: MoveResponse.Ended
    def __init__(self, step: _Optional[str] = ..., ended: _Optional[_Union[MoveResponse.Ended, _Mapping]] = ...) -> None: ...

class CancelMoveRequest(_message.Message):
    __slots__ = ("volume_id", "to_node")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    to_node: str
    def __init__(self, volume_id: _Optional[str] = ..., to_node: _Optional[str] = ...) -> None: ...

class CancelMoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("volume", "request", "content")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    volume: _csi_pb2.Volume
    request: _csi_pb2.CreateVolumeRequest
    content: Content
    def __init__(self, volume: _Optional[_Union[_csi_pb2.Volume, _Mapping]] = ..., request: _Optional[_Union[_csi_pb2.CreateVolumeRequest, _Mapping]] = ..., content: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("directory", "fs_type", "capacity_bytes", "thick", "mkfs_options")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    FS_TYPE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    THICK_FIELD_NUMBER: _ClassVar[int]
    MKFS_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    directory: bool
    fs_type: str
    capacity_bytes: int
    thick: bool
    mkfs_options: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, directory: _Optional[bool] = ..., fs_type: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., thick: _Optional[bool] = ..., mkfs_options: _Optional[_Iterable[str]] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("begin", "commit")
    class Begin(_message.Message):
        __slots__ = ("volume", "content")
        VOLUME_FIELD_NUMBER: _ClassVar[int]
        CONTENT_FIELD_NUMBER: _ClassVar[int]
        volume: _csi_pb2.CreateVolumeRequest
        content: Content
        def __init__(self, volume: _Optional[_Union[_csi_pb2.CreateVolumeRequest, _Mapping]] = ..., content: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...
    class Commit(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    begin: ImportRequest.Begin
    commit: ImportRequest.Commit
    def __init__(self, begin: _Optional[_Union[ImportRequest.Begin, _Mapping]] = ..., commit: _Optional[_Union[ImportRequest.Commit, _Mapping]] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("ready", "committed")
    class Ready(_message.Message):
        __slots__ = ("pool_uuid", "pool_path", "data_path", "capacity_bytes")
        POOL_UUID_FIELD_NUMBER: _ClassVar[int]
        POOL_PATH_FIELD_NUMBER: _ClassVar[int]
        DATA_PATH_FIELD_NUMBER: _ClassVar[int]
        CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
        pool_uuid: str
        pool_path: str
        data_path: str
        capacity_bytes: int
        def __init__(self, pool_uuid: _Optional[str] = ..., pool_path: _Optional[str] = ..., data_path: _Optional[str] = ..., capacity_bytes: _Optional[int] = ...) -> None: ...
    class Committed(_message.Message):
        __slots__ = ("volume",)
        VOLUME_FIELD_NUMBER: _ClassVar[int]
        volume: _csi_pb2.Volume
        def __init__(self, volume: _Optional[_Union[_csi_pb2.Volume, _Mapping]] = ...) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ready: ImportResponse.Ready
    committed: ImportResponse.Committed
    def __init__(self, ready: _Optional[_Union[ImportResponse.Ready, _Mapping]] = ..., committed: _Optional[_Union[ImportResponse.Committed, _Mapping]] = ...) -> None: ...
