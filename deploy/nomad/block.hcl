# A raw block device on node-1: nomad volume create block.hcl
#
# A task sees a device where it mounts the volume. Nomad's docker driver lets only privileged tasks
# open it, and its exec driver none.

id        = "blocks"
name      = "blocks"
type      = "csi"
plugin_id = "pycsi-node-1"

capacity_min = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "block-device"
}

parameters {
  allocation = "thin" # or "thick": all blocks are there from the beginning
}

topology_request {
  required {
    topology {
      segments = { "topology.pycsi.storage/node" = "node-1" }
    }
  }
}
