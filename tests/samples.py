"""What unit tests of records start from."""

from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access, RecordedRequest

VOLUME = Volume(
    id="v@node-1",
    name="v",
    pool="p",
    pool_uuid="u",
    type=VolumeType.DIRECTORY,
    reason="",
    access=Access.MOUNT,
    filesystem=None,
    capacity=4096,
    enforced=False,
    thick=False,
    mkfs_options=(),
    request=RecordedRequest(capabilities=()),
    settings={},
    created=1,
)
