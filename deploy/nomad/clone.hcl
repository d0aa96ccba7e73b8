# A volume made from a snapshot: nomad volume create clone.hcl
#
# The snapshot was taken by: nomad volume snapshot create data before-upgrade
# It lies on node-1, and so will the new volume. Type and filesystem are the source's; the size is
# what is asked for here, and no less than the source's.

id        = "data-before-upgrade"
name      = "data-before-upgrade"
type      = "csi"
plugin_id = "pycsi-node-1"

# The driver's ids, not Nomad's: `nomad volume snapshot list -plugin pycsi-node-1` shows them. To
# clone a volume instead, give its External ID, which `nomad volume status data` shows.
snapshot_id = "before-upgrade@node-1"
# clone_id  = "data@node-1"

capacity_min = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}
