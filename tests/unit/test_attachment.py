"""Where a volume's attachment is recorded, by this version and by older ones."""

import dataclasses
import json
from pathlib import Path

from samples import VOLUME

from pycsi.model.records import Attachment, Volume
from pycsi.model.request import Access, Capability, Mode, RecordedRequest
from pycsi.pool.layout import (
    Layout,
    delete_attachment,
    is_attached_by_record,
    volume_catalog,
    write_new_volume,
    write_volume,
)

CAPABILITY = Capability(access=Access.MOUNT, mode=Mode.SINGLE_NODE_WRITER)
ATTACHMENT = {
    "node": "node-1",
    "capability": {
        "access": "mount",
        "mode": "SINGLE_NODE_WRITER",
        "filesystem": None,
        "mount_flags": [],
    },
    "readonly": False,
}
ATTACHABLE = dataclasses.replace(
    VOLUME,
    request=RecordedRequest(capabilities=(CAPABILITY,)),
    settings={"onDelete": "delete"},
)


def loaded(layout: Layout) -> Volume:
    catalog = volume_catalog(layout)
    catalog.load()
    (volume,) = catalog
    return volume


def test_attachment_in_the_record_of_an_older_version(tmp_path: Path) -> None:
    """It is still known after the volume's record was replaced, and gone when it is deleted."""
    layout = Layout(tmp_path)
    place = layout.volumes / ATTACHABLE.id
    place.mkdir(parents=True)
    write_new_volume(str(place), ATTACHABLE)
    record = json.loads((place / "volume.json").read_text())
    (place / "volume.json").write_text(json.dumps(record | {"attachment": ATTACHMENT}))
    attached = loaded(layout)
    assert attached.attachment == Attachment.from_json(ATTACHMENT)
    assert is_attached_by_record(str(place))
    grown = dataclasses.replace(attached, capacity=8192)
    write_volume(str(place), grown)
    assert loaded(layout) == grown
    delete_attachment(str(place))
    assert loaded(layout) == dataclasses.replace(grown, attachment=None)
