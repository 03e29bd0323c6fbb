{{/* Name of the operator's objects. */}}
{{- define "multimodel.operator" -}}
{{ .Release.Name | trunc 54 | trimSuffix "-" }}-operator
{{- end }}

{{/* Labels of the chart's objects. */}}
{{- define "multimodel.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "multimodel.selector" . }}
{{- end }}

{{/* Labels that select the operator's pod. */}}
{{- define "multimodel.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* An image with its tag: call with (list $ "router"). */}}
{{- define "multimodel.image" -}}
{{- $root := index . 0 }}
{{- $image := index $root.Values.images (index . 1) }}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) }}
{{- end }}

{{/* Namespaces whose pods may read metrics, with commas between. */}}
{{- define "multimodel.metricsNamespaces" -}}
{{ concat (list .Release.Namespace) .Values.monitoring.namespaces | uniq | join "," }}
{{- end }}
