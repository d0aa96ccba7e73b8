# A volume with a filesystem: nomad volume create volume.hcl
#
# It lies on node-1. Nomad has no variables in such a file; for another node:
#   sed s/node-1/NAME/ volume.hcl | nomad volume create -
#
# Running it again after capacity_min was raised expands the volume, also while it is in use.

id        = "data"
name      = "data" # what the node knows it by: let no other volume there have it, in any namespace
type      = "csi"
plugin_id = "pycsi-node-1"

capacity_min = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type     = "ext4"
  mount_flags = ["noatime"]
}

parameters {
  type     = "image"
  onDelete = "retain" # deleted, it can be brought back for a while: pycsi trash
}

# Any other node refuses to make it.
topology_request {
  required {
    topology {
      segments = { "topology.pycsi.storage/node" = "node-1" }
    }
  }
}
