{{- define "convoy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Room is left for the longest suffix, "-trigger-auth", and for a StatefulSet's revision. */}}
{{- define "convoy.fullname" -}}
{{- $name := include "convoy.name" . }}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $both | trunc 48 | trimSuffix "-" }}
{{- end }}

{{/* Of everything in this release, the pods of hooks included. */}}
{{- define "convoy.releaseLabels" -}}
app.kubernetes.io/name: {{ include "convoy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of the pods that forward, and of none that a hook starts. */}}
{{- define "convoy.selectorLabels" -}}
{{ include "convoy.releaseLabels" . }}
app.kubernetes.io/component: forwarder
{{- end }}

{{- define "convoy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "convoy.releaseLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "convoy.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "convoy.fullname" .) "default") }}
{{- end }}

{{- define "convoy.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A setting from config as text, from list $ GROUP NAME; empty: left to the service. */}}
{{- define "convoy.setting" -}}
{{- $group := index (index . 0).Values.config (index . 1) | default dict }}
{{- $value := index $group (index . 2) }}
{{- if not (kindIs "invalid" $value) }}
{{- include "convoy.value" $value }}
{{- end }}
{{- end }}

{{- define "convoy.port" -}}
{{- include "convoy.setting" (list . "ops" "port") | default 8080 }}
{{- end }}

{{/* The port that a URL leads to. */}}
{{- define "convoy.portOf" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") }}
{{- end }}

{{/*
The drain, then at worst 5 s for the last commit, 5 s to leave the group, 5 s for the last outcomes, and the end.
*/}}
{{- define "convoy.terminationGracePeriodSeconds" -}}
{{- add (include "convoy.setting" (list . "shutdown" "drain_seconds") | default 40 | ceil | int64) 20 }}
{{- end }}

{{/* Contradictions that a schema cannot see; each ends the rendering before anything is sent. */}}
{{- define "convoy.check" -}}
{{- $kafka := .Values.config.kafka | default dict }}
{{- if not $kafka.bootstrap_servers }}
{{- fail "config.kafka.bootstrap_servers is missing: where is Kafka?" }}
{{- end }}
{{- if and .Values.apiKey.existingSecret .Values.apiKey.value }}
{{- fail "apiKey.existingSecret and apiKey.value are both set: give one of them" }}
{{- end }}
{{- if not (or .Values.apiKey.existingSecret .Values.apiKey.value (include "convoy.setting" (list . "api" "key_file"))) }}
{{- fail "the API key is missing: set apiKey.existingSecret to the name of a Secret, or apiKey.value" }}
{{- end }}
{{- $sasl := .Values.kafka.sasl }}
{{- if and $sasl.existingSecret $sasl.password }}
{{- fail "kafka.sasl.existingSecret and kafka.sasl.password are both set: give one of them" }}
{{- end }}
{{- if and $sasl.usernameKey (not $sasl.existingSecret) }}
{{- fail "kafka.sasl.usernameKey is a key of kafka.sasl.existingSecret, which is not set" }}
{{- end }}
{{- $protocol := $kafka.security_protocol | default "PLAINTEXT" }}
{{- if and (or $sasl.existingSecret $sasl.password) (not (hasPrefix "SASL" $protocol)) }}
{{- fail (printf "kafka.sasl is set, but config.kafka.security_protocol is %s: SASL_SSL or SASL_PLAINTEXT would use it" $protocol) }}
{{- end }}
{{- if and (or .Values.kafka.ca.secret .Values.kafka.ca.configMap .Values.kafka.clientCertificate.secret) (not (hasSuffix "SSL" $protocol)) }}
{{- fail (printf "kafka.ca or kafka.clientCertificate is set, but config.kafka.security_protocol is %s: SSL or SASL_SSL would use it" $protocol) }}
{{- end }}
{{- range $name, $source := dict "apiCa" .Values.apiCa "kafka.ca" .Values.kafka.ca }}
{{- if and $source.secret $source.configMap }}
{{- fail (printf "%s.secret and %s.configMap are both set: give one of them" $name $name) }}
{{- end }}
{{- end }}
{{- if $kafka.group_instance_id }}
{{- fail "config.kafka.group_instance_id would be one name for all replicas, which shut each other out: set kind=StatefulSet, and each is named after its pod" }}
{{- end }}
{{- with .Values.partitions }}
{{- $most := $.Values.autoscaling.enabled | ternary $.Values.autoscaling.maxReplicas $.Values.replicas | int }}
{{- if gt $most (int .) }}
{{- fail (printf "%d replicas for %d partitions: those above would stand idle (%s, partitions)" $most (int .) ($.Values.autoscaling.enabled | ternary "autoscaling.maxReplicas" "replicas")) }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (eq (include "convoy.kafkaOauth" .) "true") (not $kafka.sasl_oauth_token_url) }}
{{- fail "autoscaling with OAUTHBEARER needs config.kafka.sasl_oauth_token_url: KEDA cannot take a token from a file" }}
{{- end }}
{{- if and .Values.topics.create (not .Values.partitions) }}
{{- fail "topics.create needs partitions: how many should the topics have?" }}
{{- end }}
{{- end }}
