# The driver on one node: nomad job run -var node=NAME plugin.nomad.hcl
#
# Each node has a job and a plugin id of its own. Nomad sends what concerns a volume to any healthy
# instance of the volume's plugin id, wherever the volume lies: under one id for all nodes, volumes
# would be created on one node and not be found by the others. And an id cannot name the node by
# itself, for Nomad does not interpolate it.

variable "node" {
  type        = string
  description = "The node's name, as `nomad node status` shows it."
}

variable "image" {
  type        = string
  default     = "localhost/pycsi:0.1.0"
  description = "The driver's image. Nomad pulls it only where the node does not have it."
}

variable "data_dir" {
  type        = string
  default     = "/var/lib/pycsi"
  description = "The pool: a directory on the node that is empty, or a pool already."
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Where the node may be."
}

job "pycsi" {
  id          = "pycsi-${var.node}"
  datacenters = var.datacenters
  node_pool   = "all"
  type        = "system" # a drain stops it last, when nothing uses its volumes any more

  constraint {
    attribute = "${node.unique.name}"
    value     = var.node
  }

  group "pycsi" {
    # Goes on trying, for instance until the pool's disk is mounted.
    restart {
      attempts = 3
      delay    = "15s"
      interval = "1m"
      mode     = "delay"
    }

    task "pycsi" {
      driver = "docker"

      config {
        image        = var.image
        privileged   = true   # it mounts, and makes loop devices; Nomad itself gives it the node's /dev
        network_mode = "none" # it serves nothing but a socket

        # Where to serve, it reads from CSI_ENDPOINT, which Nomad sets.
        args = [
          "serve",
          "--mode=single-node",
          "--node-id=${var.node}",
          "--pool=default=${var.data_dir},reserve=10%",
        ]

        # Shared, so that it follows when a disk is mounted there on the node, or unmounted.
        mount {
          type   = "bind"
          source = var.data_dir
          target = var.data_dir

          bind_options {
            propagation = "rshared"
          }
        }
      }

      csi_plugin {
        id        = "pycsi-${var.node}"
        type      = "monolith"
        mount_dir = "/csi"

        # After a crash it first takes away what was half made.
        health_timeout = "2m"
      }

      # It finishes what is under way; more than the client's max_kill_timeout is not granted.
      kill_timeout = "30s"

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
