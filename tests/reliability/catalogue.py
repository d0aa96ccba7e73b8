"""Which scenes are played with which kinds of volume."""

import pytest
from reliability.node_scenes import (
    Publish,
    PublishInline,
    PublishReadOnly,
    Stage,
    StageChecked,
    Unpublish,
    UnpublishInline,
    Unstage,
)
from reliability.scenes import (
    BTRFS,
    DIRECTORY,
    EXT4,
    RAW,
    THICK,
    XFS,
    Attach,
    BusySnapshot,
    Clone,
    Create,
    CreateFirst,
    CreateOwned,
    Delete,
    DeleteGroup,
    DeleteSnapshot,
    Detach,
    Expand,
    ExpandInUse,
    Group,
    Kind,
    Modify,
    Reap,
    Restore,
    Scene,
    Snapshot,
)

_KINDS: dict[type[Scene], tuple[Kind, ...]] = {
    Create: (DIRECTORY, EXT4, XFS, BTRFS, THICK, RAW),
    CreateFirst: (EXT4,),
    CreateOwned: (DIRECTORY, EXT4),
    Clone: (DIRECTORY, EXT4, XFS, BTRFS, THICK, RAW),
    Restore: (DIRECTORY, EXT4, XFS, RAW),
    Snapshot: (DIRECTORY, EXT4, THICK, RAW),
    BusySnapshot: (DIRECTORY, EXT4, XFS),
    Group: (EXT4,),
    DeleteGroup: (EXT4,),
    Delete: (DIRECTORY, EXT4),
    Reap: (DIRECTORY, EXT4),
    DeleteSnapshot: (DIRECTORY, EXT4),
    Expand: (DIRECTORY, EXT4, THICK),
    ExpandInUse: (DIRECTORY, XFS, BTRFS, RAW),
    Modify: (DIRECTORY,),
    Attach: (DIRECTORY,),
    Detach: (DIRECTORY,),
    Stage: (DIRECTORY, EXT4, THICK, RAW),
    StageChecked: (EXT4,),
    Unstage: (DIRECTORY, EXT4, THICK, RAW),
    Publish: (DIRECTORY, EXT4, RAW),
    PublishReadOnly: (EXT4, RAW),
    Unpublish: (DIRECTORY, EXT4, RAW),
    PublishInline: (DIRECTORY, EXT4),
    UnpublishInline: (DIRECTORY, EXT4),
}

PLAYED = [
    pytest.param(scene, kind, id=f"{scene.__name__}-{kind}")
    for scene, kinds in _KINDS.items()
    for kind in kinds
]
