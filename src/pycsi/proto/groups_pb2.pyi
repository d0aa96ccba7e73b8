from pycsi.proto import csi_pb2 as _csi_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TakePartRequest(_message.Message):
    __slots__ = ("group_snapshot_id", "begin", "freeze", "capture", "prepare", "commit")
    class Begin(_message.Message):
        __slots__ = ("name", "attempt", "source_volume_ids", "parameters")
        class ParametersEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: str
            def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
        NAME_FIELD_NUMBER: _ClassVar[int]
        ATTEMPT_FIELD_NUMBER: _ClassVar[int]
        SOURCE_VOLUME_IDS_FIELD_NUMBER: _ClassVar[int]
        PARAMETERS_FIELD_NUMBER: _ClassVar[int]
        name: str
        attempt: str
        source_volume_ids: _containers.RepeatedScalarFieldContainer[str]
        parameters: _containers.ScalarMap[str, str]
        def __init__(self, name: _Optional[str] = ..., attempt: _Optional[str] = ..., source_volume_ids: _Optional[_Iterable[str]] = ..., parameters: _Optional[_Mapping[str, str]] = ...) -> None: ...
    class Freeze(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Capture(_message.Message):
        __slots__ = ("created",)
        CREATED_FIELD_NUMBER: _ClassVar[int]
        created: float
        def __init__(self, created: _Optional[float] = ...) -> None: ...
    class Prepare(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Commit(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    begin: TakePartRequest.Begin
    freeze: TakePartRequest.Freeze
    capture: TakePartRequest.Capture
    prepare: TakePartRequest.Prepare
    commit: TakePartRequest.Commit
    def __init__(self, group_snapshot_id: _Optional[str] = ..., begin: _Optional[_Union[TakePartRequest.Begin, _Mapping]] = ..., freeze: _Optional[_Union[TakePartRequest.Freeze, _Mapping]] = ..., capture: _Optional[_Union[TakePartRequest.Capture, _Mapping]] = ..., prepare: _Optional[_Union[TakePartRequest.Prepare, _Mapping]] = ..., commit: _Optional[_Union[TakePartRequest.Commit, _Mapping]] = ...) -> None: ...

class TakePartResponse(_message.Message):
    __slots__ = ("found", "ready", "frozen", "captured", "prepared", "committed")
    class Ready(_message.Message):
        __slots__ = ("unfreezable_volume_ids",)
        UNFREEZABLE_VOLUME_IDS_FIELD_NUMBER: _ClassVar[int]
        unfreezable_volume_ids: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, unfreezable_volume_ids: _Optional[_Iterable[str]] = ...) -> None: ...
    class Frozen(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Captured(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Prepared(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    FOUND_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    found: Part
    ready: TakePartResponse.Ready
    frozen: TakePartResponse.Frozen
    captured: TakePartResponse.Captured
    prepared: TakePartResponse.Prepared
    committed: Part
    def __init__(self, found: _Optional[_Union[Part, _Mapping]] = ..., ready: _Optional[_Union[TakePartResponse.Ready, _Mapping]] = ..., frozen: _Optional[_Union[TakePartResponse.Frozen, _Mapping]] = ..., captured: _Optional[_Union[TakePartResponse.Captured, _Mapping]] = ..., prepared: _Optional[_Union[TakePartResponse.Prepared, _Mapping]] = ..., committed: _Optional[_Union[Part, _Mapping]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("source_volume_ids", "attempt", "prepared", "snapshots")
    SOURCE_VOLUME_IDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    source_volume_ids: _containers.RepeatedScalarFieldContainer[str]
    attempt: str
    prepared: bool
    snapshots: _containers.RepeatedCompositeFieldContainer[_csi_pb2.Snapshot]
    def __init__(self, source_volume_ids: _Optional[_Iterable[str]] = ..., attempt: _Optional[str] = ..., prepared: _Optional[bool] = ..., snapshots: _Optional[_Iterable[_Union[_csi_pb2.Snapshot, _Mapping]]] = ...) -> None: ...

class GetPartRequest(_message.Message):
    __slots__ = ("group_snapshot_id",)
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    def __init__(self, group_snapshot_id: _Optional[str] = ...) -> None: ...

class GetPartResponse(_message.Message):
    __slots__ = ("part",)
    PART_FIELD_NUMBER: _ClassVar[int]
    part: Part
    def __init__(self, part: _Optional[_Union[Part, _Mapping]] = ...) -> None: ...

class GetDecisionRequest(_message.Message):
    __slots__ = ("group_snapshot_id", "attempt")
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    attempt: str
    def __init__(self, group_snapshot_id: _Optional[str] = ..., attempt: _Optional[str] = ...) -> None: ...

class GetDecisionResponse(_message.Message):
    __slots__ = ("committed",)
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    def __init__(self, committed: _Optional[bool] = ...) -> None: ...

class FinishPartRequest(_message.Message):
    __slots__ = ("group_snapshot_id", "attempt", "commit")
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    attempt: str
    commit: bool
    def __init__(self, group_snapshot_id: _Optional[str] = ..., attempt: _Optional[str] = ..., commit: _Optional[bool] = ...) -> None: ...

class FinishPartResponse(_message.Message):
    __slots__ = ("part",)
    PART_FIELD_NUMBER: _ClassVar[int]
    part: Part
    def __init__(self, part: _Optional[_Union[Part, _Mapping]] = ...) -> None: ...

class DeletePartRequest(_message.Message):
    __slots__ = ("group_snapshot_id", "attempt")
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    attempt: str
    def __init__(self, group_snapshot_id: _Optional[str] = ..., attempt: _Optional[str] = ...) -> None: ...

class DeletePartResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPreparedRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPreparedResponse(_message.Message):
    __slots__ = ("entries",)
    class Entry(_message.Message):
        __slots__ = ("group_snapshot_id", "attempt")
        GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
        ATTEMPT_FIELD_NUMBER: _ClassVar[int]
        group_snapshot_id: str
        attempt: str
        def __init__(self, group_snapshot_id: _Optional[str] = ..., attempt: _Optional[str] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[ListPreparedResponse.Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[ListPreparedResponse.Entry, _Mapping]]] = ...) -> None: ...
