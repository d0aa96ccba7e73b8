# Uses the volume of volume.hcl: nomad job run app.nomad.hcl
#
# Nomad places it on the node that has the volume. Each start adds a line, and shows them all:
#   nomad alloc logs -job app

job "app" {
  group "app" {
    volume "data" {
      type            = "csi"
      source          = "data"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "app" {
      driver = "docker"

      config {
        image   = "busybox:1.36"
        command = "sh"
        args    = ["-ec", "date >> /data/starts; cat /data/starts; df /data; exec sleep 2147483647"]
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
