{{/* The name of the chart, and of everything in a release. */}}
{{- define "pycsi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "pycsi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "pycsi.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "pycsi.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pycsi.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "pycsi.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pycsi
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of a component's objects. Call with (dict "root" $ "component" "node"). */}}
{{- define "pycsi.componentLabels" -}}
{{ include "pycsi.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What never changes, for selectors. */}}
{{- define "pycsi.selector" -}}
app.kubernetes.io/name: {{ include "pycsi.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of pods: without the chart's version, so that a new chart alone restarts no driver. */}}
{{- define "pycsi.podLabels" -}}
{{ include "pycsi.selector" . }}
app.kubernetes.io/part-of: pycsi
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pycsi.image" -}}
{{- $tag := default .root.Chart.AppVersion .image.tag -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{/* Image, pull policy and resources of a sidecar. Call with (dict "root" $ "sidecar" .Values.sidecars.resizer). */}}
{{- define "pycsi.sidecar" -}}
image: {{ include "pycsi.image" (dict "root" .root "image" .sidecar.image) }}
imagePullPolicy: {{ .sidecar.image.pullPolicy }}
resources: {{- toYaml .sidecar.resources | nindent 2 }}
{{- end }}

{{/* A container that needs nothing of the host. On a node it is root without any capability: the driver's
     socket belongs to root. */}}
{{- define "pycsi.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "pycsi.nodeSidecarSecurity" -}}
{{- if .Values.selinux.enforcing -}}
privileged: true
readOnlyRootFilesystem: true
runAsUser: 0
{{- else -}}
{{ include "pycsi.confined" . }}
runAsUser: 0
{{- end }}
{{- end }}

{{/* Only containers that talk to the API server get a token: not the privileged one. */}}
{{- define "pycsi.tokenVolume" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]
{{- end }}

{{- define "pycsi.tokenMount" -}}
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}

{{/* The value of a --pool option. Call with (dict "name" "default" "pool" .Values.pools.default). */}}
{{- define "pycsi.pool" -}}
{{ .name }}={{ .pool.path }}
{{- with .pool.reserve }},reserve={{ . }}{{ end }}
{{- with .pool.overcommit }},overcommit={{ . }}{{ end }}
{{- with .pool.uuid }},uuid={{ . }}{{ end }}
{{- if .pool.requireMount }},require-mount{{ end }}
{{- if .pool.requirePool }},require-pool{{ end }}
{{- with .pool.freezeLimit }},freeze-limit={{ . }}{{ end }}
{{- with .pool.retainFor }},retain-for={{ . }}{{ end }}
{{- end }}

{{/* The directory of the driver's socket, as the kubelet sees it. */}}
{{- define "pycsi.pluginDir" -}}
{{ .Values.kubeletDir }}/plugins/{{ .Values.driverName }}
{{- end }}

{{/* Not empty if the cluster is older. Call with (dict "root" $ "version" "1.32"). */}}
{{- define "pycsi.before" -}}
{{- if semverCompare (printf "<%s.0-0" .version) .root.Capabilities.KubeVersion.Version }}true{{ end }}
{{- end }}

{{/* The account of a component's pods. Call with (dict "root" $ "component" "node"). */}}
{{- define "pycsi.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "pycsi.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "pycsi.componentLabels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{/* That a component's account has the two roles of its name. Call likewise. */}}
{{- define "pycsi.roleBindings" -}}
{{- $name := printf "%s-%s" (include "pycsi.fullname" .root) .component -}}
{{- range $kind := list "ClusterRole" "Role" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $name }}
  {{- if eq $kind "Role" }}
  namespace: {{ $.root.Release.Namespace }}
  {{- end }}
  labels: {{- include "pycsi.componentLabels" $ | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $.root.Release.Namespace }}
{{- end }}
{{- end }}

{{/* Who a pod runs as that needs nothing of the host. OpenShift chooses that itself. */}}
{{- define "pycsi.nobody" -}}
runAsNonRoot: true
{{- if not .Values.openshift.enabled }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
{{- end }}

{{/* What cannot work is refused before anything is made. */}}
{{- define "pycsi.check" -}}
{{- $taken := list .Values.kubeletDir "/csi" "/dev" "/tmp" "/opt/pycsi" "/usr" "/etc" "/proc" "/sys" "/bin" "/sbin" "/lib" "/lib64" }}
{{- if .Values.ioLimits.enabled }}{{ $taken = append $taken "/cgroup" }}{{ end }}
{{- range $name, $pool := .Values.pools }}
{{- range $taken }}
{{- if or (hasPrefix (printf "%s/" .) (printf "%s/" $pool.path)) (hasPrefix (printf "%s/" $pool.path) (printf "%s/" .)) }}
{{- fail (printf "pools.%s.path: %s and %s lie in each other; the driver's container needs both" $name $pool.path .) }}
{{- end }}
{{- end }}
{{- $taken = append $taken $pool.path }}
{{- end }}
{{- include "pycsi.checkLimits" . }}
{{- if and .Values.groupSnapshots.enabled (not .Values.sidecars.snapshotter.enabled) }}
{{- fail "groupSnapshots.enabled needs sidecars.snapshotter.enabled" }}
{{- end }}
{{- include "pycsi.checkVersions" . }}
{{- include "pycsi.checkCertificates" . }}
{{- if eq .Values.mode "single-node" }}
{{- $nodes := list }}
{{- range (lookup "v1" "Node" "" "").items }}
{{- $node := . }}
{{- $fits := true }}
{{- range $key, $value := $.Values.node.nodeSelector }}
{{- if ne (get $node.metadata.labels $key) $value }}{{ $fits = false }}{{ end }}
{{- end }}
{{- if $fits }}{{ $nodes = append $nodes $node.metadata.name }}{{ end }}
{{- end }}
{{- if gt (len $nodes) 1 }}
{{- fail (printf "mode: single-node is for one node, and node.nodeSelector fits %d (%s): set mode: distributed, or a node.nodeSelector that fits one" (len $nodes) (join ", " $nodes)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Without the cgroups of the pods no node could make a volume of such a class. */}}
{{- define "pycsi.checkLimits" -}}
{{- if not .Values.ioLimits.enabled }}
{{- range concat (.Values.storageClasses | default list) (.Values.volumeAttributesClasses | default list) }}
{{- $class := .name }}
{{- range $key, $value := pick (.parameters | default dict) "readBandwidth" "writeBandwidth" "readIops" "writeIops" }}
{{- if ne (toString $value) "none" }}
{{- fail (printf "class %s: %s needs ioLimits.enabled" $class $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the cluster's version or the driver does not know is refused, where it would have no effect. */}}
{{- define "pycsi.checkVersions" -}}
{{- $wanted := dict
  "csiDriver.preventPodSchedulingIfMissing" (list .Values.csiDriver.preventPodSchedulingIfMissing "1.36")
  "csiDriver.nodeAllocatableUpdatePeriodSeconds" (list .Values.csiDriver.nodeAllocatableUpdatePeriodSeconds "1.33")
  "sidecars.healthMonitor.enabled" (list .Values.sidecars.healthMonitor.enabled "1.37") }}
{{- range $name, $value := $wanted }}
{{- if and (first $value) (include "pycsi.before" (dict "root" $ "version" (last $value))) }}
{{- fail (printf "%s needs Kubernetes %s; this is %s" $name (last $value) $.Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- if and .Values.csiDriver.nodeAllocatableUpdatePeriodSeconds (not .Values.maxVolumesPerNode) }}
{{- fail "csiDriver.nodeAllocatableUpdatePeriodSeconds needs maxVolumesPerNode: without a limit there is nothing to update" }}
{{- end }}
{{- if .Values.csiDriver.seLinuxMount }}
{{- range .Values.storageClasses }}
{{- if ne (dig "type" "" (.parameters | default dict)) "image" }}
{{- fail (printf "csiDriver.seLinuxMount: StorageClass %s may make directories, which cannot be mounted with a label of their own; it needs parameters.type: image" .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.sidecars.healthMonitor.enabled (eq .Values.csiVersion "1.12") }}
{{- fail "sidecars.healthMonitor.enabled needs csiVersion 1.13, whose calls it makes" }}
{{- end }}
{{- end }}
