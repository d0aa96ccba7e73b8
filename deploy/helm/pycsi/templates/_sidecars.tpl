{{/* The sidecars that call the API server, in the node's pod of mode single-node and in the controller's of mode
     distributed. There they serve all nodes, and of several replicas one, the leader, works. Call each with
     (dict "root" $ "central" true). */}}
{{- define "pycsi.sidecars" -}}
{{ include "pycsi.provisioner" . }}
{{- if .root.Values.sidecars.snapshotter.enabled }}
{{ include "pycsi.snapshotter" . }}
{{- end }}
{{- if .root.Values.sidecars.resizer.enabled }}
{{ include "pycsi.resizer" . }}
{{- end }}
{{- if .root.Values.sidecars.healthMonitor.enabled }}
{{ include "pycsi.healthMonitor" . }}
{{- end }}
{{- if .root.Values.snapshotMetadata.enabled }}
{{ include "pycsi.snapshotMetadata" . }}
{{- end }}
{{- end }}

{{- define "pycsi.provisioner" -}}
- name: provisioner
  {{- include "pycsi.sidecar" (dict "root" .root "sidecar" .root.Values.sidecars.provisioner) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    {{- if .central }}
    {{- include "pycsi.leaderElection" . | nindent 4 }}
    # All nodes that a volume may be on, the selected one first: a claim with a source goes to the source's node,
    # whichever was selected, and the scheduler follows.
    - --strict-topology=false
    # Of claims that wait for no pod (Immediate) the controller chooses a node with room.
    - --immediate-topology=false
    # The Deployment owns the capacity objects, so they outlive its pods.
    - --capacity-ownerref-level=2
    # Calls that wait for one node leave enough for the others.
    - --worker-threads=100
    - --capacity-threads=10
    - --retry-interval-max=1m
    - --kube-api-qps=100
    - --kube-api-burst=200
    # Of its own, and 1 a second by default: pods with new classes would wait for minutes.
    - --kube-api-capacity-qps=50
    - --kube-api-capacity-burst=100
    - --snapshot-orphan-sweep-interval=5m
    {{- else }}
    # The node serves the claims that the scheduler has placed on it.
    - --node-deployment=true
    - --strict-topology=true
    - --immediate-topology=false
    # The DaemonSet owns the capacity objects, so they outlive a restart of the pod.
    - --capacity-ownerref-level=1
    - --worker-threads=10
    - --kube-api-qps=20
    - --kube-api-burst=40
    # Of its own, and 1 a second by default: pods with new classes would wait for minutes.
    - --kube-api-capacity-qps=20
    - --kube-api-capacity-burst=40
    - --snapshot-orphan-sweep-interval=30m
    {{- end }}
    - --enable-capacity=true
    - --capacity-poll-interval=1m
    - --extra-create-metadata=true
    - --timeout=120s
    - --http-endpoint=:8081
    - --v=2
    {{- with .root.Values.sidecars.provisioner.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    {{- if not .central }}
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    {{- end }}
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- include "pycsi.clientSidecar" (merge (dict "port" "provisioner" "number" 8081) .) | nindent 2 }}
{{- end }}

{{- define "pycsi.snapshotter" -}}
- name: snapshotter
  {{- include "pycsi.sidecar" (dict "root" .root "sidecar" .root.Values.sidecars.snapshotter) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    {{- if .central }}
    {{- include "pycsi.leaderElection" . | nindent 4 }}
    - --worker-threads=50
    - --retry-interval-max=1m
    - --kube-api-qps=50
    - --kube-api-burst=100
    {{- else }}
    - --worker-threads=4
    - --kube-api-qps=20
    - --kube-api-burst=40
    {{- end }}
    - --extra-create-metadata=true
    - --timeout=120s
    - --http-endpoint=:8082
    - --v=2
    # Said both ways: the default differs between versions.
    - --feature-gates=CSIVolumeGroupSnapshot={{ .root.Values.groupSnapshots.enabled }}
    {{- with .root.Values.sidecars.snapshotter.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "pycsi.namespaceIfCentral" . | nindent 2 }}
  {{- include "pycsi.clientSidecar" (merge (dict "port" "snapshotter" "number" 8082) .) | nindent 2 }}
{{- end }}

{{- define "pycsi.resizer" -}}
{{- $tag := include "pycsi.resizerTag" .root -}}
{{- $image := merge (dict "tag" $tag) .root.Values.sidecars.resizer.image -}}
- name: resizer
  {{- include "pycsi.sidecar" (dict "root" .root "sidecar" (merge (dict "image" $image) .root.Values.sidecars.resizer)) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    {{- if .central }}
    {{- include "pycsi.leaderElection" . | nindent 4 }}
    - --workers=50
    - --retry-interval-max=1m
    - --kube-api-qps=50
    - --kube-api-burst=100
    {{- else }}
    - --workers=4
    - --kube-api-qps=20
    - --kube-api-burst=40
    {{- end }}
    - --handle-volume-inuse-error=false
    - --timeout=60s
    - --http-endpoint=:8083
    - --v=2
    {{- if and (include "pycsi.before" (dict "root" .root "version" "1.32")) (regexMatch "^v?[0-9]+[.][0-9]+[.][0-9]+$" $tag) (semverCompare "<2.3.0-0" $tag) }}
    - --feature-gates=RecoverVolumeExpansionFailure=false
    {{- end }}
    {{- with .root.Values.sidecars.resizer.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "pycsi.namespaceIfCentral" . | nindent 2 }}
  {{- include "pycsi.clientSidecar" (merge (dict "port" "resizer" "number" 8083) .) | nindent 2 }}
{{- end }}

{{/* Kubelets before 1.32 do not know the states of a recovery, and since v2.3.0 they are always written. */}}
{{- define "pycsi.resizerTag" -}}
{{- if .Values.sidecars.resizer.image.tag -}}
{{ .Values.sidecars.resizer.image.tag }}
{{- else if include "pycsi.before" (dict "root" . "version" "1.32") -}}
v2.2.1
{{- else -}}
v2.3.0
{{- end }}
{{- end }}

{{- define "pycsi.healthMonitor" -}}
- name: health-monitor
  {{- include "pycsi.sidecar" (dict "root" .root "sidecar" .root.Values.sidecars.healthMonitor) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    {{- if .central }}
    {{- include "pycsi.leaderElection" . | nindent 4 }}
    - --kube-api-qps=50
    - --kube-api-burst=100
    {{- else }}
    - --kube-api-qps=20
    - --kube-api-burst=40
    {{- end }}
    - --list-volumes-interval=1m
    - --timeout=120s
    - --http-endpoint=:8085
    - --v=2
    {{- with .root.Values.sidecars.healthMonitor.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "pycsi.namespaceIfCentral" . | nindent 2 }}
  {{- include "pycsi.clientSidecar" (merge (dict "port" "health-monitor" "number" 8085) .) | nindent 2 }}
{{- end }}

{{/* Each replica serves, behind one Service: there is nothing that two could do at once. */}}
{{- define "pycsi.snapshotMetadata" -}}
- name: snapshot-metadata
  {{- include "pycsi.sidecar" (dict "root" .root "sidecar" .root.Values.snapshotMetadata) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --port=50051
    - --tls-cert=/tls/tls.crt
    - --tls-key=/tls/tls.key
    - --audience={{ include "pycsi.snapshotMetadataAudience" .root }}
    - --timeout=60s
    - --kube-api-qps=50
    - --kube-api-burst=100
    - --http-endpoint=:8086
    - --v=2
    {{- with .root.Values.snapshotMetadata.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext: {{- include (.central | ternary "pycsi.confined" "pycsi.nodeSidecarSecurity") .root | nindent 4 }}
  ports:
    - {name: changed-blocks, containerPort: 50051}
    - {name: metadata-http, containerPort: 8086}
  readinessProbe:
    httpGet: {path: /health, port: metadata-http}
    periodSeconds: 10
    timeoutSeconds: 5
  volumeMounts:
    - {name: socket, mountPath: /csi}
    - {name: snapshot-metadata-tls, mountPath: /tls, readOnly: true}
    {{- include "pycsi.tokenMount" .root | nindent 4 }}
{{- end }}

{{/* Also with one replica: a rollout runs two for a moment. */}}
{{- define "pycsi.leaderElection" -}}
- --leader-election=true
- --leader-election-namespace=$(NAMESPACE)
{{- end }}

{{- define "pycsi.namespaceIfCentral" -}}
{{- if .central -}}
env:
  - name: NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end }}
{{- end }}

{{/* The end of a sidecar that calls the driver and the API server, with "port" and "number" of its metrics. */}}
{{- define "pycsi.clientSidecar" -}}
securityContext: {{- include (.central | ternary "pycsi.confined" "pycsi.nodeSidecarSecurity") .root | nindent 2 }}
ports:
  - {name: {{ .port }}, containerPort: {{ .number }}}
{{- if .central }}
# A leader that cannot renew its lease is started again.
livenessProbe:
  httpGet: {path: /healthz/leader-election, port: {{ .port }}}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
{{- end }}
volumeMounts:
  - {name: socket, mountPath: /csi}
  {{- include "pycsi.tokenMount" .root | nindent 2 }}
{{- end }}

{{/* What the sidecars of pycsi.sidecars call, in all namespaces. */}}
{{- define "pycsi.sidecarClusterRules" -}}
# csi-provisioner
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, update]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get]
{{- if .central }}
# Which nodes have the driver, and their topology.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [csinodes]
  verbs: [get, list, watch]
{{- end }}
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, watch, update]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list]
{{- if .root.Values.sidecars.snapshotter.enabled }}
# csi-snapshotter
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list, watch, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents/status]
  verbs: [update, patch]
{{- if .root.Values.groupSnapshots.enabled }}
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents]
  verbs: [get, list, watch, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents/status]
  verbs: [update, patch]
{{- end }}
{{- end }}
{{- if .root.Values.sidecars.resizer.enabled }}
# csi-resizer
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get, list, watch]
{{- end }}
{{- if .root.Values.sidecars.healthMonitor.enabled }}
# csi-external-health-monitor-controller
- apiGroups: [""]
  resources: [persistentvolumes, persistentvolumeclaims]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}
{{- if .root.Values.snapshotMetadata.enabled }}
# csi-snapshot-metadata: who asks, whether they may, and which snapshot they mean
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots, volumesnapshotcontents]
  verbs: [get]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotclasses]
  verbs: [get, list]
{{- end }}
{{- end }}

{{/* What they call in the release's own namespace. */}}
{{- define "pycsi.sidecarRules" -}}
# csi-provisioner: what room each node has, and whose objects those are
- apiGroups: [storage.k8s.io]
  resources: [csistoragecapacities]
  verbs: [get, list, watch, create, update, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
{{- if .central }}
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
# Each sidecar's election of a leader.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
{{- end }}
{{- end }}
