{{/* The driver's options and variables by which it sends traces. */}}
{{- define "pycsi.tracingArgs" -}}
{{- if .Values.tracing.endpoint -}}
- --tracing
{{- end }}
{{- end }}

{{- define "pycsi.tracingEnv" -}}
{{- if .Values.tracing.endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
{{- with .Values.tracing.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The port of the receiver: that of the endpoint, or of OTLP over gRPC. */}}
{{- define "pycsi.tracingPort" -}}
{{- regexFind ":[0-9]+$" (urlParse .Values.tracing.endpoint).host | trimPrefix ":" | default "4317" }}
{{- end }}
