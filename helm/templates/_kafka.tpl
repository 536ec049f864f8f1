{{/* How Kafka is spoken to, and how KEDA says it. */}}

{{- define "convoy.kafkaOauth" -}}
{{- eq (include "convoy.setting" (list . "kafka" "sasl_mechanism")) "OAUTHBEARER" }}
{{- end }}

{{- define "convoy.kafkaTls" -}}
{{- hasSuffix "SSL" (.Values.config.kafka.security_protocol | default "PLAINTEXT") }}
{{- end }}

{{/* KEDA's name of the SASL mechanism; empty: none. */}}
{{- define "convoy.kedaSasl" -}}
{{- if hasPrefix "SASL" (.Values.config.kafka.security_protocol | default "PLAINTEXT") }}
{{- $names := dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512" "OAUTHBEARER" "oauthbearer" }}
{{- get $names (.Values.config.kafka.sasl_mechanism | default "PLAIN") }}
{{- end }}
{{- end }}

{{- define "convoy.kedaNeedsAuthentication" -}}
{{- with .Values.kafka }}
{{- or (ne (include "convoy.kedaSasl" $) "") (ne .ca.secret "") (ne .ca.configMap "") (ne .clientCertificate.secret "") }}
{{- end }}
{{- end }}
