{{- define "convoy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "convoy.fullname" -}}
{{- $name := include "convoy.name" . }}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $both | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "convoy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "convoy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "convoy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "convoy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "convoy.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "convoy.fullname" .) "default") }}
{{- end }}

{{- define "convoy.secretName" -}}
{{- if and .Values.apiKey.existingSecret .Values.apiKey.value }}
{{- fail "apiKey.existingSecret and apiKey.value are both set: give one of them" }}
{{- end }}
{{- if not (or .Values.apiKey.existingSecret .Values.apiKey.value) }}
{{- fail "the API key is missing: set apiKey.existingSecret to the name of a Secret, or apiKey.value" }}
{{- end }}
{{- .Values.apiKey.existingSecret | default (printf "%s-api-key" (include "convoy.fullname" .)) }}
{{- end }}

{{/*
config as environment variables. They stand in the pod template rather than in a ConfigMap, so that a change rolls the
pods, a roll-back brings the old values back, and no pod restarts into settings meant for the next revision.
*/}}
{{- define "convoy.env" -}}
{{- $_ := required "config.kafka.bootstrap_servers is missing: where is Kafka?" .Values.config.kafka.bootstrap_servers }}
{{- range $group, $settings := .Values.config }}
{{- range $name, $value := $settings }}
{{- $variable := printf "CONVOY_%s__%s" $group $name | upper }}
{{- if regexMatch "^CONVOY_API__KEY$|PASSWORD$" $variable }}
{{- fail (printf "config.%s.%s is a secret and would be readable in the Deployment: use apiKey, or extraEnv with a secretKeyRef" $group $name) }}
{{- end }}
{{- if not (kindIs "invalid" $value) }}
- name: {{ $variable }}
  value: {{ include "convoy.value" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Helm reads every number as a float: 134217728 would come out as 1.34217728e+08. */}}
{{- define "convoy.value" -}}
{{- if or (kindIs "map" .) (kindIs "slice" .) }}
{{- toJson . }}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* The drain, then time to leave the group and end. */}}
{{- define "convoy.terminationGracePeriodSeconds" -}}
{{- add (dig "shutdown" "drain_seconds" 40 .Values.config | ceil | int64) 15 }}
{{- end }}
