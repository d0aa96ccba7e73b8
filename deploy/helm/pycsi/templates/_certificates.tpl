{{/* The Secret with the certificate of a role, "controller" or "node". Call with (dict "root" $ "role" "node"). */}}
{{- define "pycsi.tlsSecret" -}}
{{- default (printf "%s-%s-tls" (include "pycsi.fullname" .root) .role) (get .root.Values.tls.existingSecrets .role) }}
{{- end }}

{{/* The DNS name by which the other side knows a role. Call likewise. */}}
{{- define "pycsi.tlsName" -}}
{{ .role }}.{{ lower .root.Values.driverName }}
{{- end }}

{{/* Not empty if Helm makes the certificates of controller and nodes. */}}
{{- define "pycsi.makesCertificates" -}}
{{- if and (eq .Values.mode "distributed") (not .Values.tls.certManager.enabled) (not .Values.tls.existingSecrets.node) }}true{{ end }}
{{- end }}

{{/* The data of a Secret that an earlier upgrade has made for these DNS names, as YAML; else nothing. Call with
     (dict "root" $ "name" "pycsi-node-tls" "dnsNames" (list ...)). */}}
{{- define "pycsi.keptCertificate" -}}
{{- $secret := lookup "v1" "Secret" .root.Release.Namespace .name | default dict }}
{{- if eq (join "," .dnsNames) (dig "metadata" "annotations" "pycsi.storage/dns-names" "" $secret) }}
{{- toYaml $secret.data }}
{{- end }}
{{- end }}

{{/* The data of a new Secret, as YAML. Call with (dict "root" $ "authority" CA "title" "pycsi node" "dnsNames" (list ...)). */}}
{{- define "pycsi.newCertificate" -}}
{{- $days := int .root.Values.tls.validityDays }}
{{- $certificate := genSignedCertWithKey .title nil .dnsNames $days .authority (genPrivateKey "ecdsa") -}}
ca.crt: {{ b64enc .authority.Cert }}
tls.crt: {{ b64enc $certificate.Cert }}
tls.key: {{ b64enc $certificate.Key }}
{{- end }}

{{/* The Secret itself. Call with (dict "root" $ "component" "node" "name" ... "dnsNames" (list ...) "data" YAML). */}}
{{- define "pycsi.certificateSecret" -}}
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "pycsi.componentLabels" . | nindent 4 }}
  annotations:
    pycsi.storage/dns-names: {{ join "," .dnsNames | quote }}
data: {{- .data | nindent 2 }}
{{- end }}

{{- define "pycsi.snapshotMetadataAudience" -}}
{{ default .Values.driverName .Values.snapshotMetadata.audience }}
{{- end }}

{{- define "pycsi.snapshotMetadataSecret" -}}
{{- default (printf "%s-snapshot-metadata-tls" (include "pycsi.fullname" .)) .Values.snapshotMetadata.tls.existingSecret }}
{{- end }}

{{- define "pycsi.checkCertificates" -}}
{{- $existing := .Values.tls.existingSecrets }}
{{- if ne (empty $existing.controller) (empty $existing.node) }}
{{- fail "tls.existingSecrets: name both, controller and node: one for the controller's key, which no node may have, and one for the nodes'" }}
{{- end }}
{{- if and $existing.controller (eq $existing.controller $existing.node) }}
{{- fail "tls.existingSecrets: controller and node are one Secret; each needs a key of its own, for whoever has the controller's can ask any node" }}
{{- end }}
{{- if and $existing.controller .Values.tls.certManager.enabled }}
{{- fail "tls.certManager.enabled and tls.existingSecrets: choose one" }}
{{- end }}
{{- $metadata := .Values.snapshotMetadata }}
{{- if ne (empty $metadata.tls.existingSecret) (empty $metadata.tls.caCert) }}
{{- fail "snapshotMetadata.tls: existingSecret needs caCert, which tells clients whom to trust, and the other way round" }}
{{- end }}
{{- end }}
